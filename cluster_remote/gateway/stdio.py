"""One client on standard input and output: for inetd, a socket unit with Accept=yes, or an ssh forced command.

The program that starts this one has authenticated the client, so there is no AUTH, and the environment limits what the
client may do, as for git-annex-shell.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio

from cluster_remote.annex.private import make_private_directory
from cluster_remote.gateway.errors import GatewayError
from cluster_remote.p2p.descriptor import DescriptorConnection
from cluster_remote.p2p.key import Key
from cluster_remote.p2p.server import Closing, Ended, Endpoint, LockKeeper, Mode, serve
from cluster_remote.p2p.stream import MessageStream

__all__ = ["StdioLocks", "client_slot", "mode_from", "serve_stdio", "stderr_is_the_client"]

_STDIN, _STDOUT, _STDERR = 0, 1, 2


def mode_from(environment: Mapping[str, str]) -> Mode:
    """Return what the client may do. Any value but an empty one counts (observed with git-annex 10.20261026)."""
    if environment.get("GIT_ANNEX_SHELL_READONLY"):
        return Mode.READ_ONLY
    if environment.get("GIT_ANNEX_SHELL_APPENDONLY"):
        return Mode.APPEND_ONLY
    return Mode.READ_WRITE


def stderr_is_the_client() -> bool:
    """Return whether standard error goes to the client, as under inetd; then nothing may be written to it."""
    try:
        error, output = os.fstat(_STDERR), os.fstat(_STDOUT)
    except OSError:
        return True
    return (error.st_dev, error.st_ino) == (output.st_dev, output.st_ino)


async def serve_stdio(
    served: Endpoint, timeout: float, to_finish: float, note: Callable[[str], None], locks: LockKeeper | None = None
) -> Ended:
    """Serve until the client hangs up, or until SIGTERM or SIGINT and the end of running requests.

    After the signal, running requests have `to_finish` seconds left; then they are cut off, which is reported as a
    fault.
    """
    closing = Closing()
    ended = Ended(0, "cut off")
    with _without_blocking(), anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        connection = DescriptorConnection(os.dup(_STDIN), os.dup(_STDOUT))
        try:
            async with anyio.create_task_group() as tasks:

                async def stop() -> None:
                    async for _ in signals:
                        closing.begin()
                        await anyio.sleep(to_finish)
                        tasks.cancel_scope.cancel()

                tasks.start_soon(stop)
                stream = MessageStream(connection, timeout)
                ended = await serve(stream, served, closing=closing, locks=locks, note=note)
                tasks.cancel_scope.cancel()
        finally:
            await connection.aclose(0)
    return ended


class Slot:
    """One of a number of slots for clients, or for locks, which all processes that serve a gateway's clients share.

    A slot is a lock on a file, so it becomes free however a process ends.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def free(self) -> None:
        """Free the slot, if it is still taken."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def client_slot(directory: Path, most: int) -> Iterator[Slot]:
    """Take one of `most` slots, which are files in `directory`. Raises GatewayError."""
    slot = _take(directory, "place", most)
    if slot is None:
        raise GatewayError(f"this gateway already serves {most} clients; try again later")
    try:
        yield slot
    finally:
        slot.free()


class StdioLocks(LockKeeper):
    """The locks of disconnected clients: they take no slot, but all processes together keep at most `most`."""

    def __init__(self, directory: Path, most: int, slot: Slot) -> None:
        self._directory = directory
        self._most = most
        self._slot = slot

    def refusal(self) -> str | None:
        try:
            lock = _take(self._directory, "lock", self._most)
        except GatewayError as error:
            return str(error)
        if lock is None:
            return (
                f"{self._most} locks are still held for disconnected clients; each ends ten minutes after the "
                "disconnection"
            )
        lock.free()
        return None

    @contextmanager
    def keeping(self, key: Key) -> Iterator[None]:
        lock = None
        # If other processes have just taken all of them, this lock keeps its client's slot.
        with suppress(GatewayError):
            lock = _take(self._directory, "lock", self._most)
        if lock is None:
            yield
            return
        self._slot.free()
        try:
            yield
        finally:
            lock.free()


def _take(directory: Path, kind: str, most: int) -> Slot | None:
    """Take one of `most` slots of a kind; None if all are taken. Raises GatewayError."""
    try:
        make_private_directory(directory)
        for number in range(most):
            descriptor = os.open(
                directory / f"{kind}-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                return Slot(descriptor)
    except OSError as error:
        raise GatewayError(f"cannot count clients in {directory}: {error.strerror or error}") from None
    return None


@contextmanager
def _without_blocking() -> Iterator[None]:
    """Make standard input and output non-blocking; restore them afterwards, since others may share them."""
    before = [(descriptor, os.get_blocking(descriptor)) for descriptor in (_STDIN, _STDOUT)]
    try:
        yield
    finally:
        for descriptor, blocking in before:
            os.set_blocking(descriptor, blocking)
