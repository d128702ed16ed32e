"""The formats of the logs on the git-annex branch. Pure.

Every log is made to be merged by joining lines, so it can hold several lines about one thing, and the newest counts.
A line that cannot be read is passed over, as git-annex does: a later version may have written it.
Formats observed with git-annex 10.20261026.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from cluster_remote.p2p.key import UUID, Key, decode

__all__ = [
    "Timestamp",
    "annotated",
    "branch_path",
    "dated",
    "journal_name",
    "newest",
    "presence",
    "settings",
]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_TIMESTAMP = re.compile(r"([0-9]+)(?:\.([0-9]+))?s", re.ASCII)
_ESCAPED = re.compile(r"&([0-9]+);", re.ASCII)
_KEY_FILE = str.maketrans({"&": "&a", "%": "&s", ":": "&c", "/": "%"})


@dataclass(frozen=True, slots=True, order=True)
class Timestamp:
    """Seconds since 1970 as the log has them. Exact: as floats, two that differ could compare equal."""

    seconds: int
    # Decimal digits without trailing zeros, for which the order of texts is the order of numbers.
    fraction: str = ""

    @classmethod
    def parse(cls, text: str) -> Timestamp | None:
        """Reads `1795358606s` or `1795358606.25s`; None for anything else."""
        match = _TIMESTAMP.fullmatch(text)
        return None if match is None else cls(int(match[1]), (match[2] or "").rstrip("0"))


# What a line without a timestamp counts as: older than every line that has one.
_UNDATED = Timestamp(-1)


def _lines(raw: bytes) -> Iterator[str]:
    for line in raw.split(b"\n"):
        if line:
            yield decode(line)


def dated(raw: bytes) -> Iterator[tuple[Timestamp, str]]:
    """The lines of a log whose lines begin with their time: `TIMESTAMPs REST`."""
    for line in _lines(raw):
        stamp, _, rest = line.partition(" ")
        timestamp = Timestamp.parse(stamp)
        if timestamp is not None:
            yield timestamp, rest


def annotated(raw: bytes) -> Iterator[tuple[Timestamp, UUID, str]]:
    """The lines of a log whose lines begin with a UUID and end with their time: `UUID VALUE timestamp=TIMESTAMPs`.

    The time may be missing; such a line is older than every other.
    """
    for line in _lines(raw):
        name, _, value = line.partition(" ")
        before, _, last = value.rpartition(" ")
        timestamp = Timestamp.parse(last.removeprefix("timestamp=")) if last.startswith("timestamp=") else None
        if timestamp is not None:
            value = before
        try:
            yield timestamp or _UNDATED, UUID.parse(name), value
        except ValueError:
            continue


def newest(entries: Iterable[tuple[Timestamp, K, V]]) -> dict[K, V]:
    """The newest value of each thing; of two with the same time the later in the log."""
    best: dict[K, tuple[Timestamp, V]] = {}
    for timestamp, thing, value in entries:
        if thing not in best or best[thing][0] <= timestamp:
            best[thing] = timestamp, value
    return {thing: value for thing, (_, value) in best.items()}


def presence(raw: bytes) -> frozenset[UUID]:
    """The repositories that a location log says have the content: lines `TIMESTAMPs 1|0|X UUID`, X for dead."""
    entries: list[tuple[Timestamp, UUID, bool]] = []
    for timestamp, rest in dated(raw):
        status, _, name = rest.partition(" ")
        if status in ("0", "1", "X"):
            try:
                entries.append((timestamp, UUID.parse(name), status == "1"))
            except ValueError:
                continue
    return frozenset(uuid for uuid, present in newest(entries).items() if present)


def settings(value: str) -> dict[str, str]:
    """The parameters of a special remote as remote.log has them: words `name=value`, characters escaped as `&32;`."""
    found: dict[str, str] = {}
    for word in value.split(" "):
        name, separator, escaped = word.partition("=")
        if separator and name:
            found[name] = _ESCAPED.sub(_character, escaped)
    return found


def _character(match: re.Match[str]) -> str:
    number = int(match[1]) if len(match[1]) < 8 else 0x110000
    return chr(number) if number < 0x110000 else match[0]


def branch_path(key: Key, *, levels: int = 2) -> bytes:
    """Where a key's location log lies on the git-annex branch.

    `levels` is 2, or 1 in a repository that was made with annex.tune.branchhash1.
    """
    import hashlib

    digest = hashlib.md5(bytes(key), usedforsecurity=False).hexdigest()
    folders = "/".join((digest[:3], digest[3:6])[:levels])
    name = key.text.translate(_KEY_FILE).encode("utf-8", "surrogateescape")
    return folders.encode() + b"/" + name + b".log"


def journal_name(path: bytes) -> bytes:
    """The name in the journal of a file of the branch."""
    return path.replace(b"_", b"__").replace(b"/", b"_")
