"""A recorded conversation in the P2P protocol: read from a file, saved to one, described in words.

A saved trace is text: the first line identifies it and has the command, the last has the exit code, and those between
are the messages as the sessions wrote them (see transport/tracing.py). It may come from a stranger, in a bug report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from cluster_remote.p2p.text import printable

__all__ = [
    "BadTrace",
    "Conversation",
    "Ending",
    "Heading",
    "Sessions",
    "TraceFormatter",
    "TracedMessage",
    "is_heading",
    "named",
    "parse_message",
    "read_ending",
    "read_heading",
    "write_ending",
    "write_heading",
    "write_message",
]

FORMAT = 1
_MARK = "cluster-remote-trace"
# Maximum characters of a message to show.
_LONGEST = 4000


class BadTrace(ValueError):
    """Not a saved trace, or a damaged one."""


@dataclass(frozen=True, slots=True)
class TracedMessage:
    """One message."""

    time: Annotated[float, "seconds since 1970"]
    pid: Annotated[int, "the process with the session"]
    session: Annotated[int, "its number in that process"]
    peer: Annotated[str, "the address at the other end"]
    server: Annotated[str | None, "the UUID requested there"]
    job: Annotated[str | None, "git-annex's job number, if it runs several at once"]
    out: Annotated[bool, "whether it was sent to the peer; false: received from there"]
    message: Annotated[str, "the line, without the line end; tokens are masked"]
    size: Annotated[int, "bytes of the line"]
    data: Annotated[int | None, "bytes of content that follow the line, for DATA"]


@dataclass(frozen=True, slots=True)
class Heading:
    """What is known before the first message."""

    command: Annotated[tuple[str, ...], "the command that was run"]
    started: Annotated[float, "seconds since 1970"]
    names: Annotated[Mapping[str, str], "the repository's names for others, by UUID"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known after the last message."""

    exit_code: Annotated[int | None, "the command's exit code; null if unknown"] = None


@dataclass(frozen=True)
class Conversation:
    """What a command and its peers said to each other."""

    command: Annotated[tuple[str, ...], "the command that was run"]
    started: Annotated[float, "seconds since 1970"]
    names: Annotated[Mapping[str, str], "the repository's names for others, by UUID"]
    messages: tuple[TracedMessage, ...]
    exit_code: Annotated[int | None, "the command's exit code; null if unknown"]


def write_heading(heading: Heading) -> str:
    """Return the first line of a saved trace."""
    return json.dumps({_MARK: FORMAT, **asdict(heading)}) + "\n"


def write_message(said: TracedMessage) -> str:
    """Return the line for a message."""
    return json.dumps(asdict(said)) + "\n"


def write_ending(ending: Ending) -> str:
    """Return the last line of a saved trace."""
    return json.dumps(asdict(ending)) + "\n"


def is_heading(line: str) -> bool:
    """Return whether this looks like the first line of a saved trace."""
    return line.startswith(f'{{"{_MARK}":')


def read_heading(line: str) -> Heading:
    """Parse the first line. Raises BadTrace."""
    found = _object(line)
    if _MARK not in found:
        raise BadTrace("this is not a trace saved by cluster-remote")
    if found[_MARK] != FORMAT:
        raise BadTrace(f"this trace has a newer format ({printable(str(found[_MARK]))}) than this program knows")
    command, names = found.get("command"), found.get("names")
    if not isinstance(command, list) or not isinstance(names, dict):
        raise BadTrace("the first line of this trace is damaged")
    return Heading(
        tuple(map(str, command)),
        _number(found, "started"),
        {str(uuid): str(name) for uuid, name in names.items()},
    )


def read_ending(line: str) -> Ending | None:
    """Parse the end of a trace; return None if the line is a message. Raises BadTrace."""
    found = _object(line)
    if "exit_code" not in found:
        return None
    code = found["exit_code"]
    return Ending(code if isinstance(code, int) else None)


def parse_message(line: str) -> TracedMessage:
    """Parse one message. Raises BadTrace."""
    found = _object(line)
    server, job, data = found.get("server"), found.get("job"), found.get("data")
    message, peer = found.get("message"), found.get("peer")
    if not isinstance(message, str) or not isinstance(peer, str) or not isinstance(found.get("out"), bool):
        raise BadTrace(f"not a message of a trace: {printable(line[:200])}")
    return TracedMessage(
        time=_number(found, "time"),
        pid=int(_number(found, "pid")),
        session=int(_number(found, "session")),
        peer=peer,
        server=server if isinstance(server, str) else None,
        job=job if isinstance(job, str) else None,
        out=found["out"],
        message=message,
        size=int(_number(found, "size")),
        data=int(data) if isinstance(data, int) else None,
    )


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        raise BadTrace(f"not a line of a trace: {printable(line[:200])}") from None
    if not isinstance(found, dict):
        raise BadTrace(f"not a line of a trace: {printable(line[:200])}")
    return found


def _number(found: Mapping[str, Any], name: str) -> float:
    value = found.get(name)
    # In Python, True and False are numbers; in JSON, 1e999 is one.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise BadTrace(f"{name} is not a number in a line of this trace")
    return value


class Sessions:
    """The sessions of a conversation, numbered in order of appearance: each process has its own first session."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._numbers: dict[tuple[int, int], int] = {}
        self.labels: list[str] = []
        """Each session's description, in the order of their numbers (from 1)."""

    def number(self, said: TracedMessage) -> tuple[int, bool]:
        """Return the number of a message's session, and whether it is new."""
        key = (said.pid, said.session)
        new = key not in self._numbers
        if new:
            self._numbers[key] = len(self._numbers) + 1
            name = "" if said.server is None else self._names.get(said.server, said.server)
            self.labels.append(printable(f"{name} at {said.peer}" if name else said.peer))
        return self._numbers[key], new


def named(message: str, names: Mapping[str, str]) -> str:
    """Return the names of the repositories that a message lists by UUID; empty if none has a name."""
    found = [names[word] for word in message[:_LONGEST].split(" ") if word in names]
    return printable(", ".join(found))


class TraceFormatter:
    """Formats a conversation as text, message by message. `plain`: in ASCII."""

    def __init__(self, heading: Heading, *, plain: bool = False) -> None:
        self._heading = heading
        self._sessions = Sessions(heading.names)
        self._outgoing, self._incoming = (">", "<") if plain else ("→", "←")

    def lines(self, said: TracedMessage) -> Iterator[str]:
        """Yield the lines for the next message; before the first of a session, also one for the session."""
        number, new = self._sessions.number(said)
        since = f"{said.time - self._heading.started:9.3f} s"
        if new:
            yield f"{since}  #{number} is {self._sessions.labels[-1]} (process {said.pid})"
        job = "" if said.job is None else f" job {printable(said.job)}"
        side = self._outgoing if said.out else self._incoming
        more = f"  + {said.data} bytes of content" if said.data is not None else ""
        who = named(said.message, self._heading.names)
        yield f"{since}  #{number}{job} {side} {printable(said.message, _LONGEST)}{more}" + (
            f"  ({who})" if who else ""
        )
