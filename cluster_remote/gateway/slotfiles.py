"""Slots for clients that each have a process of their own (`serve --stdio`), and for the locks they leave behind.

A slot is a file that its process has locked, so it becomes free however the process ends. The file says whose slot it
is and how long it has been idle. Another process that needs the slot asks for it in the file's first byte. The rules
are those for the clients of one process, see `slots`.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio

from cluster_remote.annex.private import make_private_directory
from cluster_remote.gateway.errors import GatewayError
from cluster_remote.gateway.slots import Connection, make_room

__all__ = ["SlotFile", "client_slot", "locks_left_behind", "owner_from", "take_lock"]

# Bytes of a file.
_LENGTH = 512
_KEPT, _WANTED = b"0", b"1"
# Seconds to wait for a slot, and between attempts.
_PATIENCE, _LOOK = 3.0, 0.1
# Seconds without a request after which a client without an address gives way to another one if all slots are taken.
_SHORT_IDLE = 1.0


def owner_from(environment: Mapping[str, str]) -> str | None:
    """Return what to count the client by: its address, as sshd, systemd or inetd says it; None if unknown."""
    ssh = environment.get("SSH_CONNECTION", "").split(" ")[0]
    return (ssh or environment.get("REMOTE_ADDR") or environment.get("REMOTE_HOST") or "")[:100] or None


class SlotFile:
    """A slot that this process has taken. `content` is what a lock holds."""

    def __init__(self, descriptor: int, owner: str | None, content: str = "") -> None:
        self._descriptor: int | None = descriptor
        self._said = {"owner": owner, "content": content}
        self._idle_since: float | None = None
        self._write()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Wrap the time without a request."""
        self._idle_since = time.monotonic()
        self._write()
        try:
            yield
        finally:
            self._idle_since = None
            self._write()

    def is_wanted(self) -> bool:
        """Return whether another client needs this slot, which is idle."""
        return (
            self._descriptor is not None
            and self._idle_since is not None
            and os.pread(self._descriptor, 1, 0) == _WANTED
        )

    def free(self) -> None:
        """Free the slot, if it is still taken."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _write(self) -> None:
        if self._descriptor is None:
            return
        said = json.dumps({**self._said, "idle since": self._idle_since}).encode()
        try:
            os.pwrite(self._descriptor, (_KEPT + said).ljust(_LENGTH), 0)
        except OSError:
            # A full disk must not keep clients from reading and removing. An empty file says that its client is busy.
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)


@asynccontextmanager
async def client_slot(directory: Path, most: int, owner: str | None) -> AsyncIterator[SlotFile]:
    """Take one of `most` slots, which are files in `directory`; idle clients may give way. Raises GatewayError."""
    deadline = time.monotonic() + _PATIENCE
    while not isinstance(found := _take_slot(directory, most, owner), SlotFile):
        if time.monotonic() > deadline:
            raise GatewayError(f"{found}; try again later")
        await anyio.sleep(_LOOK)
    try:
        yield found
    finally:
        found.free()


def _take_slot(directory: Path, most: int, owner: str | None) -> SlotFile | str:
    """Take a slot; return why there is none for now. Raises GatewayError."""
    taken = {each.connection: each for each in _taken(directory, "slot", most)}
    whose = {connection: connection.address for connection in taken}
    # Clients without an address may be different ones, so they have no common share.
    giving_way, refusal = make_room(whose, most, _named(owner), most if owner is None else None)
    if refusal is not None:
        return refusal
    if giving_way is None and (descriptor := _lock_one(directory, "slot", most)) is not None:
        return SlotFile(descriptor, owner)
    if giving_way is not None:
        taken[giving_way].want(directory)
    return f"all {most} clients of this gateway are busy"


def _named(owner: str | None) -> str:
    return "a client without an address" if owner is None else owner


def take_lock(directory: Path, most: int, owner: str | None, content: str) -> SlotFile | None:
    """Take one of `most` slots for locks, and end an older lock of the same client on the same content.

    Returns None if all are taken. Raises GatewayError.
    """
    for each in _taken(directory, "lock", most):
        if (each.owner, each.content) == (owner, content):
            # The newer one lasts longer.
            each.want(directory)
    descriptor = _lock_one(directory, "lock", most)
    return None if descriptor is None else SlotFile(descriptor, owner, content)


def locks_left_behind(directory: Path, most: int, owner: str | None) -> tuple[int, int]:
    """Return how many slots for locks are taken, and how many of them by this client. Raises GatewayError."""
    taken = _taken(directory, "lock", most)
    return len(taken), sum(1 for each in taken if each.owner == owner)


@dataclass(frozen=True)
class _Taken:
    """What the file of another process's slot says."""

    file: str
    owner: str | None
    content: str
    connection: Connection

    def want(self, directory: Path) -> None:
        """Ask for the slot."""
        with _open(directory, self.file) as descriptor:
            os.pwrite(descriptor, _WANTED, 0)


def _taken(directory: Path, kind: str, most: int) -> list[_Taken]:
    """Return the slots that processes hold. Raises GatewayError."""
    found = []
    for number in range(most):
        with _open(directory, f"{kind}-{number}", create=False) as descriptor:
            if descriptor >= 0 and not _lock(descriptor, fcntl.LOCK_SH):
                found.append(_read(f"{kind}-{number}", os.pread(descriptor, _LENGTH, 0)))
    return found


def _read(file: str, said: bytes) -> _Taken:
    """Read what a file says. A process that has just taken it may not have written it yet."""
    try:
        found = json.loads(said[1:])
        owner, content, idle_since = found["owner"], str(found["content"]), found["idle since"]
    except (ValueError, KeyError, TypeError):
        owner, content, idle_since = None, "", None
    connection = Connection(file, _named(owner))
    connection.idle_since = idle_since if isinstance(idle_since, int | float) else None
    if owner is None:
        connection.longest_idle = _SHORT_IDLE
    return _Taken(file, owner, content, connection)


def _lock_one(directory: Path, kind: str, most: int) -> int | None:
    """Lock one of the files and return its descriptor; None if all are locked. Raises GatewayError."""
    for number in range(most):
        with _open(directory, f"{kind}-{number}") as descriptor:
            if _lock(descriptor, fcntl.LOCK_EX):
                return os.dup(descriptor)
    return None


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _open(directory: Path, file: str, *, create: bool = True) -> Iterator[int]:
    """Open a file; without `create`, -1 stands for one that does not exist. Raises GatewayError."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    try:
        if create:
            make_private_directory(directory)
        try:
            descriptor = os.open(directory / file, flags, 0o600)
        except FileNotFoundError:
            descriptor = -1
        try:
            yield descriptor
        finally:
            if descriptor >= 0:
                os.close(descriptor)
    except OSError as error:
        raise GatewayError(f"cannot count clients in {directory}: {error.strerror or error}") from None
