"""The sessions of all clients of a gateway: each request borrows one.

With sessions of their own, fifty clients would have fifty programs on each node. git-annex's collect garbage whenever
they have been idle for a third of a second: on two cores, small files then took three times as long.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass

import anyio

from cluster_remote.gateway.budget import DescriptorBudget, Reserved, ShareUsedUp
from cluster_remote.p2p import MAX_VERSION
from cluster_remote.p2p.errors import Refused, SessionError, Unreachable
from cluster_remote.p2p.exhaustion import Exhausted
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.relay import ClientGone, ClientMisbehaved, SessionFailed
from cluster_remote.p2p.server import Endpoint
from cluster_remote.p2p.session import (
    Download,
    Present,
    Progress,
    Removal,
    Session,
    Source,
    Stored,
    Upload,
)
from cluster_remote.p2p.uploads import watched
from cluster_remote.transport.turns import Turn, Turns

__all__ = ["VERSION_AGE", "SessionPool"]

VERSION_AGE = 10.0
"""How old what a request knows about the nodes may be, in seconds: reading it takes a process."""

# Seconds to keep an unused session, and between looks for such.
_IDLE, _LOOK = 30.0, 5.0
# The fewest requests to work on at once, and after how many seconds one does not count any more.
_AT_ONCE, _LONGEST = 8, 1.0
# Seconds without a returned session before many sessions become more, and with returned ones that others were faster to
# borrow; and how long to wait for one if there is no room.
_PATIENCE, _MOST_PATIENCE, _WAIT = 0.5, 2.0, 10.0


@dataclass(frozen=True)
class _Kind:
    """What a session leads to. `nodes` changes with the configuration of the nodes."""

    uuid: UUID
    client: UUID | None
    bypass: frozenset[UUID]
    nodes: object


class SessionPool:
    """Opens sessions, lends each to one request at a time, and closes those that stay unused.

    `node_count` returns how many nodes a session with a cluster may connect to. `version` returns a value that changes
    with the configuration of the nodes, at most so many seconds old.
    """

    def __init__(
        self,
        descriptors: DescriptorBudget,
        node_count: Callable[[], Awaitable[int]],
        version: Callable[[float], Awaitable[object]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._descriptors = descriptors
        self._node_count = node_count
        self._version = version
        self._clock = clock
        self._at_once = max(_AT_ONCE, 4 * (os.cpu_count() or 1))
        self._turns = Turns(self._at_once, _LONGEST)
        self._clients = 0
        self._idle: list[tuple[float, _Kind, Session]] = []
        # All open ones.
        self._reserved: dict[Session, Reserved] = {}
        self._making_room = anyio.Lock()
        self._returned = anyio.Event()

    async def session(self, served: Endpoint, owner: str, bypass: frozenset[UUID], max_age: float = 0.0) -> Session:
        """Return a session for a client that is counted by `owner`; it needs not be closed.

        What it knows about the nodes is at most `max_age` seconds old at first, and later VERSION_AGE: a client may
        stay connected for days. Raises SessionError.
        """
        if served.uuid.is_cluster:
            await self._version(max_age)
        return _Shared(self, served, bypass, owner)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[None]:
        """Wrap the time that a client is connected: when the last one leaves, sessions end, and disks are not busy."""
        self._clients += 1
        try:
            yield
        finally:
            self._clients -= 1
            with anyio.CancelScope(shield=True):
                await self._close_while(lambda: not self._clients)

    @asynccontextmanager
    async def lend(self, served: Endpoint, bypass: frozenset[UUID], owner: str) -> AsyncIterator[tuple[Session, Turn]]:
        """Wait for a request's turn, and lend it a session. Raises SessionError."""
        async with self._turns.turn() as turn:
            nodes = await self._version(VERSION_AGE) if served.uuid.is_cluster else None
            kind = _Kind(served.uuid, served.client, bypass, nodes)
            session = await self._obtained(served, kind, owner)
            try:
                yield session, turn
            except Exception as error:
                if _may_be_broken(error):
                    await self._close(session)
                raise
            finally:
                if session in self._reserved:
                    self._idle.append((self._clock(), kind, session))
                    self._tell_waiting()

    async def _obtained(self, served: Endpoint, kind: _Kind, owner: str) -> Session:
        if (session := self._reused(kind, owner)) is not None:
            return session
        nodes = await self._node_count() if served.uuid.is_cluster else 1
        began = anyio.current_time()
        patient_until, deadline = began + _MOST_PATIENCE, began + _WAIT
        while True:
            if (session := self._reused(kind, owner)) is not None:
                return session
            if len(self._reserved) >= 2 * self._at_once:
                if (other := next((each for each in self._idle if each[1] != kind), None)) is not None:
                    self._idle.remove(other)
                    await self._close(other[2])
                    continue
                # On a busy machine all take long, and would take longer with more programs.
                if await self._one_returned(min(_PATIENCE, patient_until - anyio.current_time())):
                    continue
                patient_until = began
            try:
                taken = await self._reused_or_room(kind, nodes, owner)
            except Unreachable:
                if not await self._one_returned(deadline - anyio.current_time()):
                    raise
                continue
            if not isinstance(taken, Reserved):
                return taken
            try:
                session = await served.session(kind.bypass)
            except BaseException:
                self._descriptors.give_back(taken)
                self._tell_waiting()
                raise
            self._reserved[session] = taken
            return session

    async def _one_returned(self, seconds: float) -> bool:
        """Wait until a session is returned, closed or not opened; return False if none is within `seconds`."""
        with anyio.move_on_after(seconds):
            await self._returned.wait()
            return True
        return False

    async def _reused_or_room(self, kind: _Kind, nodes: int, owner: str) -> Session | Reserved:
        """Return a session that was returned meanwhile, or reserve descriptors for a new one.

        Idle sessions with something else give way, but only the owner's own if it has its share. Raises Unreachable.
        """
        async with self._making_room:
            while True:
                if (session := self._reused(kind, owner)) is not None:
                    return session
                try:
                    return self._descriptors.take(nodes, owner)
                except Unreachable as refusal:
                    giving_way = next((each for each in self._idle if self._helps(refusal, each[2], owner)), None)
                    if giving_way is None:
                        raise
                self._idle.remove(giving_way)
                await self._close(giving_way[2])

    def _helps(self, refusal: Unreachable, session: Session, owner: str) -> bool:
        return not isinstance(refusal, ShareUsedUp) or self._reserved[session].owner == owner

    def _reused(self, kind: _Kind, owner: str) -> Session | None:
        # The most recently used one is most likely still good; and the others may end.
        for index in reversed(range(len(self._idle))):
            _, known, session = self._idle[index]
            if known == kind:
                with suppress(ShareUsedUp):
                    self._reserved[session] = self._descriptors.pass_on(self._reserved[session], owner)
                    del self._idle[index]
                    return session
        return None

    async def _close_while(self, condition: Callable[[], bool]) -> None:
        """Close idle sessions concurrently, the longest idle first: with a node that hangs, each takes seconds."""
        async with anyio.create_task_group() as tasks:
            while self._idle and condition():
                tasks.start_soon(self._close, self._idle.pop(0)[2])

    async def aclose(self) -> None:
        """Close all idle sessions."""
        await self._close_while(lambda: True)

    async def close_unused(self, look: float = _LOOK) -> None:
        """Close sessions that stay unused, until cancelled; look for them every `look` seconds."""
        while True:
            await anyio.sleep(look)
            await self._close_while(lambda: self._idle[0][0] < self._clock() - _IDLE)

    async def _close(self, session: Session) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await session.aclose()
            finally:
                self._descriptors.give_back(self._reserved.pop(session))
                self._tell_waiting()

    def _tell_waiting(self) -> None:
        returned, self._returned = self._returned, anyio.Event()
        returned.set()


def _may_be_broken(error: Exception) -> bool:
    """Return whether an error may have left a session half initialised: one that neither it nor its client reported."""
    return isinstance(error, Exhausted) or not isinstance(
        error, SessionError | ClientGone | ClientMisbehaved | SessionFailed
    )


class _Shared(Session):
    """A client's session, which borrows one of the pool's for each request."""

    def __init__(self, pool: SessionPool, served: Endpoint, bypass: frozenset[UUID], owner: str) -> None:
        self._pool = pool
        self._served = served
        self._bypass = bypass
        self._owner = owner
        self.pipelines_checks = not served.uuid.is_cluster

    @property
    def name(self) -> str:
        return str(self._served.uuid)

    @property
    def version(self) -> int | None:
        return MAX_VERSION

    def _borrowed(self) -> AbstractAsyncContextManager[tuple[Session, Turn]]:
        return self._pool.lend(self._served, self._bypass, self._owner)

    async def open(self) -> UUID:
        async with self._borrowed() as (session, _):
            return await session.open()

    async def check_present(self, key: Key) -> bool:
        async with self._borrowed() as (session, _):
            return await session.check_present(key)

    async def check_everywhere(self, key: Key) -> bool:
        async with self._borrowed() as (session, _):
            return await session.check_everywhere(key)

    async def check_all(self, keys: Sequence[Key]) -> list[bool | Refused]:
        async with self._borrowed() as (session, _):
            return await session.check_all(keys)

    @asynccontextmanager
    async def upload(self, key: Key, file: AssociatedFile) -> AsyncIterator[Present | Upload]:
        async with self._borrowed() as (session, turn), session.upload(key, file) as offer:
            turn.rest()
            yield offer if isinstance(offer, Present) else _InTurn(offer, turn)

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        async with self._borrowed() as (session, turn), session.download(key, file, offset) as download:
            turn.rest()
            yield download

    async def remove(self, key: Key, before: int | None = None) -> Removal:
        async with self._borrowed() as (session, _):
            return await session.remove(key, before)

    async def timestamp(self) -> int:
        async with self._borrowed() as (session, _):
            return await session.timestamp()

    @asynccontextmanager
    async def lock(self, key: Key) -> AsyncIterator[bool]:
        async with self._borrowed() as (session, turn), session.lock(key) as locked:
            turn.rest()
            yield locked

    async def aclose(self) -> None:
        """Do nothing: the pool closes its sessions."""


class _InTurn(Upload):
    """An upload whose turn rests while the client sends, and goes on when the nodes store what has arrived."""

    def __init__(self, inside: Upload, turn: Turn) -> None:
        self.offset = inside.offset
        self._inside = inside
        self._turn = turn

    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        return await self._inside.send(watched(source, self._turn.resume), progress)

    async def check_arrived(self) -> Stored:
        self._turn.resume()
        return await self._inside.check_arrived()
