"""One client on standard input and output: for inetd, a socket unit with Accept=yes, or an ssh forced command.

The program that starts this one has authenticated the client, so there is no AUTH, and the environment limits what the
client may do, as for git-annex-shell.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import anyio

from cluster_remote.gateway.errors import GatewayError
from cluster_remote.gateway.listeners import notice_dead_client
from cluster_remote.gateway.slotfiles import SlotFile, locks_left_behind, take_lock
from cluster_remote.p2p.descriptor import DescriptorConnection, has_unread
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.messages import Error, serialise
from cluster_remote.p2p.server import Closing, Ended, Endpoint, LockKeeper, Mode, serve
from cluster_remote.p2p.stream import MessageStream

__all__ = ["StdioLocks", "mode_from", "serve_stdio", "tell_client"]

_STDIN, _STDOUT, _STDERR = 0, 1, 2
# Seconds between checks whether another client needs this one's slot.
_LOOK = 0.25


def mode_from(environment: Mapping[str, str]) -> Mode:
    """Return what the client may do. Any value but an empty one counts (observed with git-annex 10.20261026)."""
    if environment.get("GIT_ANNEX_SHELL_READONLY"):
        return Mode.READ_ONLY
    if environment.get("GIT_ANNEX_SHELL_APPENDONLY"):
        return Mode.APPEND_ONLY
    return Mode.READ_WRITE


def tell_client(words: str) -> bool:
    """Tell the client why it cannot be served, if standard error goes to it, as under inetd; return whether it does.

    It gets a message of the protocol in place of what is written to standard error from now on.
    """
    if not _stderr_is_the_client():
        return False
    with suppress(OSError):
        os.write(_STDOUT, serialise(Error(words)))
    _silence(_STDERR)
    return True


def _stderr_is_the_client() -> bool:
    try:
        error, output = os.fstat(_STDERR), os.fstat(_STDOUT)
    except OSError:
        return True
    return (error.st_dev, error.st_ino) == (output.st_dev, output.st_ino)


def _silence(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


@contextmanager
def _nothing_but_protocol() -> Iterator[None]:
    """Keep errors from the client if standard error goes to it; afterwards too, as its last message may be content."""
    if not _stderr_is_the_client():
        yield
        return
    _silence(_STDERR)
    try:
        yield
    finally:
        _silence(_STDOUT)


async def serve_stdio(
    served: Endpoint, timeout: float, to_finish: float, note: Callable[[str], None], locks: StdioLocks | None = None
) -> Ended:
    """Serve until the client hangs up, or until SIGTERM or SIGINT and the end of running requests.

    After the signal, running requests have `to_finish` seconds left; then they are cut off, which is reported as a
    fault. So is an idle client, or a lock, that gives way to another one.
    """
    closing = _SlotClosing(locks)
    ended = Ended(0, "cut off")
    _notice_dead_client()
    with (
        _nothing_but_protocol(),
        _without_blocking(),
        anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
    ):
        connection = DescriptorConnection(os.dup(_STDIN), os.dup(_STDOUT))
        try:
            async with anyio.create_task_group() as tasks:

                async def stop() -> None:
                    async for _ in signals:
                        closing.begin()
                        await anyio.sleep(to_finish)
                        tasks.cancel_scope.cancel()

                async def give_way() -> None:
                    nonlocal ended
                    while locks is not None:
                        await anyio.sleep(_LOOK)
                        if locks.must_give_way():
                            ended = Ended(0, "was idle and gave way to another client")
                            tasks.cancel_scope.cancel()

                tasks.start_soon(stop)
                tasks.start_soon(give_way)
                stream = MessageStream(connection, timeout)
                ended = await serve(stream, served, closing=closing, locks=locks, note=note)
                tasks.cancel_scope.cancel()
        finally:
            await connection.aclose(0)
    return ended


class StdioLocks(LockKeeper):
    """The locks that clients leave behind: they take no slot, but all processes together keep at most `most`.

    A client gets a quarter of them, one for each content of the repository `where`; clients without an address get all.
    """

    def __init__(self, directory: Path, most: int, owner: str | None, where: UUID, slot: SlotFile) -> None:
        self._directory = directory
        self._most = most
        self._owner = owner
        self._where = where
        self.slot = slot
        """The client's slot, and in the end that of its lock."""

    def must_give_way(self) -> bool:
        """Return whether another client needs the slot and this one is idle, also without a request on its way."""
        return self.slot.is_wanted() and not has_unread(_STDIN)

    def refusal(self) -> str | None:
        try:
            all_clients, mine = locks_left_behind(self._directory, self._most, self._owner)
        except GatewayError as error:
            return str(error)
        if all_clients < self._most and (self._owner is None or mine < max(1, self._most // 4)):
            return None
        return (
            f"{mine if all_clients < self._most else all_clients} locks are still held for disconnected clients; each "
            "ends ten minutes after the disconnection"
        )

    @contextmanager
    def keeping(self, key: Key) -> Iterator[None]:
        content = hashlib.sha256(f"{self._where} ".encode() + bytes(key)).hexdigest()
        lock = None
        # If other processes have just taken all of them, this lock keeps its client's slot.
        with suppress(GatewayError):
            lock = take_lock(self._directory, self._most, self._owner, content)
        if lock is None:
            yield
            return
        self.slot.free()
        self.slot = lock
        try:
            with lock.idle():
                yield
        finally:
            lock.free()


class _SlotClosing(Closing):
    """Notes in the client's slot when it is idle."""

    def __init__(self, locks: StdioLocks | None) -> None:
        super().__init__()
        self._locks = locks

    @contextmanager
    def idle(self) -> Iterator[None]:
        with super().idle(), nullcontext() if self._locks is None else self._locks.slot.idle():
            yield


def _notice_dead_client() -> None:
    """See `notice_dead_client`: under inetd or systemd, standard input is the client's connection."""
    if stat.S_ISSOCK(os.fstat(_STDIN).st_mode):
        with socket.socket(fileno=os.dup(_STDIN)) as client:
            if client.family in (socket.AF_INET, socket.AF_INET6):
                notice_dead_client(client)


@contextmanager
def _without_blocking() -> Iterator[None]:
    """Make standard input and output non-blocking; restore them afterwards, since others may share them."""
    before = [(descriptor, os.get_blocking(descriptor)) for descriptor in (_STDIN, _STDOUT)]
    try:
        yield
    finally:
        for descriptor, blocking in before:
            os.set_blocking(descriptor, blocking)
