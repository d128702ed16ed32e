"""What all children with pipes have in common, whoever started them and for whatever purpose."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable

import anyio

__all__ = ["Complaints", "pipes_of", "until"]

# Bytes of a child's standard error that are kept for the error message; the last ones matter.
_KEPT = 4096
# Seconds between two looks at whether a child has ended, at first; doubled up to the second figure.
_FIRST_LOOK, _LONGEST_LOOK = 0.001, 0.05


class Complaints:
    """Reads a child's standard error to its end and keeps the last of it.

    In a thread, so that a talkative child is never blocked. It ends with the child; a daemon, because something that
    the child left running (a shared ssh connection) may keep the pipe open.
    """

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._words = bytearray()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def last(self) -> bytes:
        """The last 4096 bytes."""
        return bytes(self._words)

    async def wait(self, seconds: float) -> None:
        """Waits for their end, for at most so many seconds."""
        with anyio.move_on_after(seconds):
            while self._listener.is_alive():
                await anyio.sleep(_FIRST_LOOK)

    def _listen(self) -> None:
        stderr = self._child.stderr
        assert stderr is not None
        with stderr:
            while data := stderr.read(_KEPT):
                self._words += data
                del self._words[:-_KEPT]


def pipes_of(child: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Descriptors of a child's standard output, to read from, and input, to write to; the caller's to close."""
    assert child.stdin is not None
    assert child.stdout is not None
    descriptors = os.dup(child.stdout.fileno()), os.dup(child.stdin.fileno())
    child.stdin.close()
    child.stdout.close()
    return descriptors


async def until(condition: Callable[[], bool], patience: float) -> bool:
    """Looks again and again whether something has come about, for at most `patience` seconds. Whether it has."""
    pause = _FIRST_LOOK
    with anyio.move_on_after(patience):
        while not condition():
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_LOOK)
    return condition()
