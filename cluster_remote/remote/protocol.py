"""The external special remote protocol where annexremote is not exact enough for keys and files of any name.

annexremote strips whitespace of every kind from what git-annex says, and a control character at the end of a file
name with it; it also takes a TypeError of the program for a mistake of git-annex.
"""

from __future__ import annotations

import io
import sys
import threading
from typing import Any, BinaryIO

from annexremote import Master, RemoteError, SpecialRemote, UnsupportedRequest
from annexremote.annexremote import Protocol

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


class _Protocol(Protocol):  # type: ignore[misc] # annexremote has no types
    def check_key(self, key: str) -> None:
        # The key is checked where it is read, by the rules of git-annex rather than those of Python.
        pass

    def command(self, line: str) -> Any:
        word, _space, parameters = line.partition(" ")
        method = self.lookupMethod(word) or self.do_UNKNOWN
        reply = method(parameters) if parameters else method()
        if method != self.do_EXPORT:
            self.exporting = False
        return reply


class AnnexMaster(Master):  # type: ignore[misc] # annexremote has no types
    """Speaks with git-annex over the given streams until it hangs up."""

    def __init__(self, output: io.TextIOWrapper) -> None:
        super().__init__(output)
        # Progress and debug messages come from the event loop's thread.
        self._sending = threading.Lock()

    def LinkRemote(self, remote: SpecialRemote) -> None:
        self.remote = remote
        self.protocol = _Protocol(remote)

    def Listen(self, input: io.TextIOWrapper) -> None:
        self.input = input
        self._send(self.protocol.version)
        while line := self.input.readline():
            try:
                reply = self.protocol.command(line.removesuffix("\n"))
            except UnsupportedRequest:
                reply = "UNSUPPORTED-REQUEST"
            except RemoteError as error:
                # Where the protocol has no way to refuse, only the end is left.
                self.error(one_line(str(error)))
                return
            if reply:
                self._send(reply)

    def _send(self, *args: object, **_keywords: object) -> None:
        line = " ".join(map(str, args))
        with self._sending:
            self.output.write(line + "\n")
            self.output.flush()


def standard_streams() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """Takes over standard input and output. What anything prints by mistake goes to standard error from now on."""
    streams = text_streams(sys.stdin.buffer, sys.stdout.buffer)
    sys.stdout = sys.stderr
    return streams
