"""The external special remote protocol where annexremote is not exact enough for keys and files of any name.

annexremote strips whitespace of every kind from what git-annex says, and a control character at the end of a file
name with it; it also takes a TypeError of the program for a mistake of git-annex.
"""

from __future__ import annotations

import io
import sys
import threading
import typing
from typing import Any, BinaryIO

from annexremote import Master, ProtocolError, SpecialRemote, UnsupportedRequest
from annexremote.annexremote import AnnexError, Protocol

__all__ = ["AnnexMaster", "one_line", "text_streams"]


def text_streams(stdin: BinaryIO, stdout: BinaryIO) -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """The two ways to git-annex as text in which any byte survives, lines ending in a newline and nothing else."""
    return (
        io.TextIOWrapper(stdin, encoding="utf-8", errors="surrogateescape", newline="\n"),
        io.TextIOWrapper(stdout, encoding="utf-8", errors="surrogateescape", newline="\n"),
    )


def one_line(text: str) -> str:
    """A message as the protocol can carry it. Other control characters could do things to a terminal."""
    lines = ("".join(c if c.isprintable() or ord(c) > 0x9F else " " for c in line) for line in text.splitlines())
    return "; ".join(line.strip() for line in lines if line.strip()) or "unknown error"


# How many debug messages wait for others at most.
_HELD_MESSAGES = 64


class _Protocol(Protocol):  # type: ignore[misc] # annexremote has no types
    def check_key(self, key: str) -> None:
        # The key is checked where it is read, by the rules of git-annex rather than those of Python.
        pass

    def do_EXTENSIONS(self, offered: str = "") -> str:
        self.extensions = offered.split(" ")
        return " ".join(["EXTENSIONS", *(name for name in ("INFO", "ASYNC") if name in self.extensions)])

    def command(self, line: str) -> Any:
        word, _space, parameters = line.partition(" ")
        method = self.lookupMethod(word) or self.do_UNKNOWN
        try:
            reply = method(parameters) if parameters else method()
        except TypeError as error:
            # The call itself, not something that was called by it.
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            raise ProtocolError(f"{word} came with {'too many' if parameters else 'no'} parameters") from None
        if method != self.do_EXPORT:
            self.exporting = False
        return reply


class Lines(typing.Protocol):
    """Where a Master reads from."""

    def readline(self) -> str:
        """A line with its newline; the empty text at the end."""


class AnnexMaster(Master):  # type: ignore[misc] # annexremote has no types
    """Speaks with git-annex over the given streams until it hangs up."""

    def __init__(self, output: io.TextIOWrapper) -> None:
        super().__init__(output)
        # Progress and debug messages come from the event loop's thread, those of jobs from theirs.
        self._sending = threading.Lock()
        self._held: list[str] = []

    @property
    def asynchronous(self) -> bool:
        """Whether git-annex and this program have agreed on the ASYNC extension."""
        return "ASYNC" in self.protocol.extensions

    def LinkRemote(self, remote: SpecialRemote) -> None:
        self.remote = remote
        self.protocol = _Protocol(remote)

    def greet(self) -> None:
        """The first line of the protocol."""
        self.say(self.protocol.version)

    def Listen(self, input: Lines) -> None:
        """Answers requests until git-annex hangs up, or until one cannot be answered at all."""
        self.input = input
        while line := input.readline():
            if not self.answer(line):
                return

    def answer(self, line: str) -> bool:
        """Answers one request. False where nothing more can be said."""
        try:
            reply = self.protocol.command(line.removesuffix("\n"))
        except UnsupportedRequest:
            reply = "UNSUPPORTED-REQUEST"
        except (AnnexError, SyntaxError) as error:
            # Where the protocol has no way to refuse, or git-annex does not keep to it, only the end is left.
            self.error(one_line(str(error)))
            return False
        except BrokenPipeError:
            # git-annex is gone.
            raise
        except Exception as error:  # noqa: BLE001 -- a job that ended without a word would leave git-annex waiting
            self.error(one_line(f"internal error: {type(error).__name__}: {error}"))
            return False
        if reply:
            self.say(reply)
        return True

    def debug(self, *args: object) -> None:
        """As in annexremote; but it may wait a little for the next message, and go out together with that.

        Most of git-annex's users never see these messages: they must not cost a turn of two processes each. Whoever
        waits for a request flushes them now and then.
        """
        with self._sending:
            self._held.append(" ".join(["DEBUG", *map(str, args)]))
            many = len(self._held) >= _HELD_MESSAGES
        if many:
            self.flush()

    def flush(self) -> None:
        """Sends the debug messages that wait."""
        self.say("")

    def say(self, line: str) -> None:
        """One message, or several at once, each on a line of its own; after the debug messages that wait."""
        with self._sending:
            lines = [*self._held, *(line.split("\n") if line else [])]
            self._held = []
            if lines:
                self._write(lines)

    def _write(self, lines: list[str]) -> None:
        self.output.write("".join(f"{line}\n" for line in lines))
        self.output.flush()

    def _send(self, *args: object, **_keywords: object) -> None:
        self.say(" ".join(map(str, args)))


def standard_streams() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """Takes over standard input and output. What anything prints by mistake goes to standard error from now on."""
    streams = text_streams(sys.stdin.buffer, sys.stdout.buffer)
    sys.stdout = sys.stderr
    return streams
