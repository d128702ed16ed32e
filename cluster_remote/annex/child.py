"""Run child processes that end with their owner.

Each child has its own process group: `git annex` is git running git-annex running git, and killing only the first
would leave the others behind.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from subprocess import PIPE

import anyio
from anyio.abc import ByteReceiveStream, Process

from cluster_remote.annex.errors import CommandFailed
from cluster_remote.annex.waiting import KEPT, Completed
from cluster_remote.limits import why_refused
from cluster_remote.p2p.descriptor import DescriptorConnection
from cluster_remote.p2p.errors import ConnectionLost
from cluster_remote.p2p.key import decode
from cluster_remote.p2p.text import visible

__all__ = [
    "PipedChild",
    "StderrTail",
    "Tail",
    "drain",
    "end",
    "kill",
    "pipes_of",
    "run",
    "send_signal",
    "start",
    "until",
]

# Seconds to wait for a killed child. Only a process stuck in the kernel takes this long.
_REAP = 10.0
# Seconds to wait for the rest of a child's standard error after it has ended: its own children may hold the pipe open.
_STDERR_REST = 0.5
# Seconds between polls: the first interval, doubled up to the second.
_FIRST_POLL, _MAX_POLL = 0.001, 0.05
# Maximum bytes of output of a one-shot command.
_OUTPUT_LIMIT = 64 * 2**20


class Tail:
    """The last `limit` bytes of a stream, for quoting in an error."""

    def __init__(self, limit: int = KEPT) -> None:
        self._limit = limit
        self.last = b""

    def feed(self, chunk: bytes) -> None:
        self.last = (self.last + chunk)[-self._limit :]

    def text(self) -> str:
        """Return the kept text, with the characters that a terminal might obey escaped."""
        return visible(decode(self.last)).strip()


class StderrTail:
    """Read a child's standard error to its end and keep the tail.

    Uses a thread, so that a verbose child never blocks. The thread ends with the child, but is a daemon because a
    process left behind by the child (a shared ssh connection) may keep the pipe open.
    """

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._tail = Tail()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def last(self) -> bytes:
        """Return the last `KEPT` bytes."""
        return self._tail.last

    def text(self) -> str:
        """Return the tail as text, see Tail."""
        return self._tail.text()

    async def wait(self, seconds: float) -> None:
        """Wait for the end of the stream, with a deadline in seconds."""
        with anyio.move_on_after(seconds):
            while self._listener.is_alive():
                await anyio.sleep(_FIRST_POLL)

    def _listen(self) -> None:
        stderr = self._child.stderr
        assert stderr is not None
        with stderr:
            while data := stderr.read(KEPT):
                self._tail.feed(data)


def pipes_of(child: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Return descriptors of a child's standard output and input, which the caller must close."""
    assert child.stdin is not None
    assert child.stdout is not None
    descriptors = os.dup(child.stdout.fileno()), os.dup(child.stdin.fileno())
    child.stdin.close()
    child.stdout.close()
    return descriptors


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll a condition for at most `seconds` and return whether it became true."""
    pause = _FIRST_POLL
    with anyio.move_on_after(seconds):
        while not condition():
            await anyio.sleep(pause)
            pause = min(2 * pause, _MAX_POLL)
    return condition()


class PipedChild:
    """A long-lived child whose pipes are read and written directly, without the event loop's streams.

    A thread reads its standard error. Raises CommandFailed if the child cannot be started.
    """

    def __init__(self, argv: Sequence[str], *, cwd: Path | None, env: Mapping[str, str]) -> None:
        try:
            self._child = subprocess.Popen(
                list(argv), stdin=PIPE, stdout=PIPE, stderr=PIPE, bufsize=0, cwd=cwd, env=env, start_new_session=True
            )
        except OSError as e:
            raise CommandFailed(argv, None, f"cannot be started: {why_refused(e)}") from e
        self._pipes = DescriptorConnection(*pipes_of(self._child))
        self._stderr = StderrTail(self._child)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """Return the exit code; None while it is running."""
        return self._child.poll()

    def complaint(self) -> str:
        """Return the tail of its standard error."""
        return self._stderr.text()

    def send_at_once(self, data: bytes) -> memoryview:
        """Send as much as possible without waiting and return the rest.

        Returns an empty rest if the child has stopped reading: its output will show why.
        """
        try:
            return memoryview(data)[self._pipes.send_at_once(data) :]
        except ConnectionLost:
            return memoryview(b"")

    async def send(self, data: memoryview) -> None:
        """Send everything, unless the child has stopped reading: its output will show why."""
        try:
            while data:
                data = data[await self._pipes.send_some(data) :]
        except ConnectionLost:
            return

    async def receive(self, max_bytes: int) -> bytes:
        """Return some of its output; empty at the end."""
        try:
            return await self._pipes.receive(max_bytes)
        except ConnectionLost:
            return b""

    def close_input(self) -> None:
        """Close its standard input."""
        self._pipes.close_writing()

    async def wait(self) -> None:
        """Wait until it has exited and its standard error has been read. Has no deadline."""
        await until(lambda: self._child.poll() is not None, math.inf)
        await self._stderr.wait(_STDERR_REST)

    async def kill(self) -> None:
        """Kill the child and everything it started, and wait until they are gone. Shielded from cancellation.

        Does nothing if the child has already ended.
        """
        with anyio.CancelScope(shield=True):
            if self._child.poll() is None:
                send_signal(self._child.pid, signal.SIGKILL)
            await self._pipes.aclose(0)
            await until(lambda: self._child.poll() is not None, _REAP)


async def start(argv: Sequence[str], *, cwd: Path | None, env: Mapping[str, str]) -> Process:
    """Start a child with pipes on all three standard streams. Raises CommandFailed if it cannot be started."""
    try:
        return await anyio.open_process(
            list(argv), stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=cwd, env=env, start_new_session=True
        )
    except OSError as e:
        raise CommandFailed(argv, None, f"cannot be started: {why_refused(e)}") from e


async def drain(stream: ByteReceiveStream, tail: Tail) -> None:
    """Read `stream` to its end, so that the child never blocks, and keep the tail."""
    async for chunk in stream:
        tail.feed(chunk)


async def kill(process: Process) -> None:
    """Kill the child and everything it started, and wait until they are gone. Shielded from cancellation.

    Does nothing if the child has already ended.
    """
    with anyio.CancelScope(shield=True), anyio.move_on_after(_REAP):
        if process.returncode is None:
            send_signal(process.pid, signal.SIGKILL)
        await process.aclose()


async def end(process: Process, grace: float, *, group: bool) -> None:
    """Terminate a child, and kill it after `grace` seconds; with `group`, signal its whole process group.

    A child on our terminal, where it may ask the user, is in our own group. Shielded from cancellation.
    """
    with anyio.CancelScope(shield=True):
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.returncode is None:
                send_signal(process.pid, number, group=group)
                with anyio.move_on_after(grace):
                    await process.wait()


def send_signal(pid: int, number: int, *, group: bool = True) -> None:
    """Send a signal to a child that may have ended, or to its process group."""
    try:
        os.killpg(pid, number) if group else os.kill(pid, number)
    except ProcessLookupError:
        return


async def run(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str],
    input: bytes = b"",
    timeout: float,
    accept: Collection[int] | None = (0,),
    take: Callable[[bytes], bool] | None = None,
) -> Completed:
    """Run a command with `input` until it exits, for at most `timeout` seconds.

    If given, `take` receives the output piece by piece, and returns whether it wants more; otherwise the output is
    returned. Errors quote `argv`, so it must not contain secrets. Raises CommandFailed if the command cannot be
    started, does not exit in time, exits with a code that is not in `accept` (None accepts all), or writes more than is
    read (64 MiB).
    """
    tail = Tail()
    output = bytearray()

    def keep(chunk: bytes) -> bool:
        output.extend(chunk)
        return len(output) <= _OUTPUT_LIMIT

    take, unwanted = take or keep, False
    process = await start(argv, cwd=cwd, env=env)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr

    async def feed() -> None:
        try:
            await stdin.send(input)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            # It exited without reading everything; its exit code says whether that is an error.
            return
        await stdin.aclose()

    try:
        with anyio.move_on_after(timeout) as deadline:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(feed)
                tasks.start_soon(drain, stderr, tail)
                async for chunk in stdout:
                    if not take(chunk):
                        unwanted = True
                        tasks.cancel_scope.cancel()
                        break
                else:
                    await process.wait()
    finally:
        returncode = process.returncode
        await kill(process)
    if unwanted:
        raise CommandFailed(argv, None, f"wrote more than {_OUTPUT_LIMIT} bytes; given up", tail.text())
    if deadline.cancelled_caught or returncode is None:
        raise CommandFailed(argv, None, f"did not end within {timeout:g} seconds", tail.text())
    if accept is not None and returncode not in accept:
        raise CommandFailed(argv, returncode, f"ended with exit code {returncode}", tail.text())
    return Completed(argv, returncode, bytes(output), tail.text())
