"""Parse the logs on the git-annex branch. No I/O.

Logs are merged by concatenating lines, so a log can have several lines about one subject, of which the newest counts.
Lines that cannot be parsed are skipped, as in git-annex: a later version may have written them. Formats observed with
git-annex 10.20261026.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Hashable, Iterable, Iterator
from typing import TypeVar

from cluster_remote.p2p.key import UUID, Key, decode, encode

__all__ = [
    "Clock",
    "annotated",
    "branch_path",
    "dated",
    "journal_name",
    "key_file",
    "newest",
    "picoseconds",
    "presence",
    "settings",
]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# Picoseconds since 1970; a line without a time is older than any other.
Clock = int | float
_UNDATED = -math.inf

# git-annex takes numbers of any length. Python converts long ones slowly or not at all, so they are infinite here.
_DIGITS = 4000
_TIME = re.compile(r"([+-]?)([0-9]+)(?:\.([0-9]+))?s?")
_ESCAPED = re.compile(r"&([0-9]{1,7});")
_KEY_FILE = str.maketrans({"&": "&a", "%": "&s", ":": "&c", "/": "%"})


def picoseconds(text: str) -> Clock | None:
    """Parse a log's timestamp, `1795358606s` or `1795358606.25s`, to picoseconds since 1970; None for anything else.

    Exact, because floats would make different times equal. git-annex uses twelve decimal places too.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    # As with git-annex, -0.5 is 0.5.
    sign = -1 if match[1] == "-" and match[2].strip("0") else 1
    if len(match[2]) > _DIGITS:
        return sign * math.inf
    return sign * int(match[2] + (match[3] or "")[:12].ljust(12, "0"))


def _lines(raw: bytes) -> Iterator[str]:
    for line in raw.split(b"\n"):
        line = line.removesuffix(b"\r")
        if line:
            yield decode(line)


def dated(raw: bytes) -> Iterator[tuple[Clock, str]]:
    """Yield the lines of a log whose lines begin with a timestamp: `TIMESTAMPs REST`."""
    for line in _lines(raw):
        stamp, _, rest = line.partition(" ")
        clock = picoseconds(stamp)
        if clock is not None:
            yield clock, rest


def annotated(raw: bytes) -> Iterator[tuple[Clock, UUID, str]]:
    """Yield the lines of a log whose lines begin with a UUID and end with a timestamp.

    The format is `UUID VALUE timestamp=TIMESTAMPs`. A line without a timestamp is older than every other.
    """
    for line in _lines(raw):
        name, _, value = line.partition(" ")
        before, _, last = value.rpartition(" ")
        clock = picoseconds(last.removeprefix("timestamp=")) if last.startswith("timestamp=") else None
        try:
            uuid = UUID(name)
        except ValueError:
            continue
        yield (_UNDATED, uuid, value) if clock is None else (clock, uuid, before)


def newest(entries: Iterable[tuple[Clock, K, V]]) -> dict[K, V]:
    """Return the newest value for each subject; for equal times, the later line."""
    best: dict[K, tuple[Clock, V]] = {}
    for clock, subject, value in entries:
        if subject not in best or best[subject][0] <= clock:
            best[subject] = clock, value
    return {subject: value for subject, (_, value) in best.items()}


def presence(raw: bytes) -> frozenset[UUID]:
    """Return the repositories that have the content according to a location log: `TIMESTAMPs 1|0|X UUID`, X for dead.

    Of two lines with the same time, the EARLIER one counts in this log, as in git-annex.
    """
    entries: list[tuple[Clock, UUID, bool]] = []
    for clock, rest in dated(raw):
        status, _, name = rest.partition(" ")
        if status in ("0", "1", "X"):
            try:
                entries.append((clock, UUID(name), status == "1"))
            except ValueError:
                continue
    return frozenset(uuid for uuid, present in newest(reversed(entries)).items() if present)


def settings(value: str) -> dict[str, str]:
    """Parse the parameters of a special remote in remote.log: words `name=value`, characters escaped as `&32;`."""
    found: dict[str, str] = {}
    for word in value.split(" "):
        name, separator, escaped = word.partition("=")
        if separator and name:
            found[name] = _ESCAPED.sub(_character, escaped)
    return found


def _character(match: re.Match[str]) -> str:
    number = int(match[1])
    # What no argument of a program can have stays as it is.
    is_text = 0 < number < 0xD800 or 0xDC80 <= number <= 0xDCFF or 0xE000 <= number < 0x110000
    return chr(number) if is_text else match[0]


def branch_path(key: Key, *, levels: int = 2) -> bytes:
    """Return the path of a key's location log on the git-annex branch.

    `levels` is 2, or 1 in a repository that was initialised with annex.tune.branchhash1.
    """
    digest = hashlib.md5(bytes(key), usedforsecurity=False).hexdigest()
    directories = "/".join((digest[:3], digest[3:6])[:levels])
    return directories.encode() + b"/" + key_file(key) + b".log"


def key_file(key: Key) -> bytes:
    """Return the name of a file that is named after a key, such as an object."""
    return encode(key.text.translate(_KEY_FILE))


def journal_name(path: bytes) -> bytes:
    """Return a branch file's name in the journal."""
    return path.replace(b"_", b"__").replace(b"/", b"_")
