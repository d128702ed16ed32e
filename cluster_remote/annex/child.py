"""Child processes that end with their owner.

Each child leads a process group of its own: `git annex` is git running git-annex running git, and whoever
kills only the first leaves the others behind.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import PIPE

import anyio
from anyio.abc import ByteReceiveStream, Process

from cluster_remote.annex.errors import CommandFailed
from cluster_remote.p2p.descriptor import DescriptorConnection
from cluster_remote.p2p.errors import ConnectionLost
from cluster_remote.p2p.key import decode
from cluster_remote.p2p.text import visible

__all__ = ["Complaints", "PipedChild", "Tail", "drain", "kill", "pipes_of", "start", "until"]

# Seconds to wait for a killed child to be gone. Only a process stuck in the kernel takes longer than moments.
_REAP = 10.0
# Seconds that the complaints of a child that has ended may take to come: what it has started may hold the pipe open.
_LAST_WORDS = 0.5


# Bytes of a child's standard error that are kept for the error message; the last ones matter.
_KEPT = 4096
# Seconds between two looks at whether a child has ended, at first; doubled up to the second figure.
_FIRST_LOOK, _LONGEST_LOOK = 0.001, 0.05


class Tail:
    """The last `limit` bytes of a stream, to quote in an error."""

    def __init__(self, limit: int = _KEPT) -> None:
        self._limit = limit
        self._end = b""

    def feed(self, chunk: bytes) -> None:
        self._end = (self._end + chunk)[-self._limit :]

    def text(self) -> str:
        """Return what is kept, with the characters that a terminal might obey made visible."""
        return visible(decode(self._end)).strip()


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


class PipedChild:
    """A child that is spoken with over and over again: its pipes are read and written without going through the event
    loop's streams, and its complaints are read by a thread of their own.

    Raises CommandFailed where it cannot be started at all.
    """

    def __init__(self, argv: Sequence[str], *, cwd: Path | None, env: Mapping[str, str]) -> None:
        try:
            self._child = subprocess.Popen(
                list(argv), stdin=PIPE, stdout=PIPE, stderr=PIPE, bufsize=0, cwd=cwd, env=env, start_new_session=True
            )
        except OSError as e:
            raise CommandFailed(argv, None, f"cannot be started: {e.strerror or e}") from e
        self._pipes = DescriptorConnection(*pipes_of(self._child))
        self._complaints = Complaints(self._child)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._child.poll()

    def complaint(self) -> str:
        """The end of what it has written to standard error."""
        return visible(decode(self._complaints.last)).strip()

    def send_at_once(self, data: bytes) -> memoryview:
        """Sends as much as can be sent without waiting. Gives what is left.

        Nothing is left either where the child does not read any more; its output tells.
        """
        try:
            return memoryview(data)[self._pipes.send_at_once(data) :]
        except ConnectionLost:
            return memoryview(b"")

    async def send(self, data: memoryview) -> None:
        """Sends all of it, unless the child does not read any more; its output tells."""
        try:
            while data:
                data = data[await self._pipes.send_some(data) :]
        except ConnectionLost:
            return

    async def receive(self, max_bytes: int) -> bytes:
        """Some of its output; nothing at the end."""
        try:
            return await self._pipes.receive(max_bytes)
        except ConnectionLost:
            return b""

    def close_input(self) -> None:
        """Lets it see the end of its input."""
        self._pipes.close_writing()

    async def wait(self) -> None:
        """Waits until it has ended and what it complained about has been read. No deadline."""
        await until(lambda: self._child.poll() is not None, math.inf)
        await self._complaints.wait(_LAST_WORDS)

    async def kill(self) -> None:
        """Ends the child and all that it started, at once, and waits until it is gone. Not interrupted by cancellation.

        Harmless for a child that has already ended.
        """
        with anyio.CancelScope(shield=True):
            if self._child.poll() is None:
                try:
                    os.killpg(self._child.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            await self._pipes.aclose(0)
            await until(lambda: self._child.poll() is not None, _REAP)


async def start(argv: Sequence[str], *, cwd: Path | None, env: Mapping[str, str]) -> Process:
    """Starts a child with pipes on all three standard streams.

    Raises CommandFailed where it cannot be started at all.
    """
    try:
        return await anyio.open_process(
            list(argv), stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=cwd, env=env, start_new_session=True
        )
    except OSError as e:
        raise CommandFailed(argv, None, f"cannot be started: {e.strerror or e}") from e


async def drain(stream: ByteReceiveStream, tail: Tail) -> None:
    """Reads `stream` to its end, so that the child never waits for a reader; keeps the end of it."""
    async for chunk in stream:
        tail.feed(chunk)


async def kill(process: Process) -> None:
    """Ends the child and all that it started, at once, and waits until it is gone. Not interrupted by cancellation.

    Harmless for a child that has already ended.
    """
    with anyio.CancelScope(shield=True), anyio.move_on_after(_REAP):
        if process.returncode is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        await process.aclose()
