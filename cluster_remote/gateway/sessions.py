"""A pool of sessions for HTTP requests: one request uses a session at a time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

import anyio

from cluster_remote.gateway.budget import DescriptorBudget, Reserved, ShareUsedUp
from cluster_remote.p2p.errors import Unreachable
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.server import Endpoint
from cluster_remote.p2p.session import Session

__all__ = ["SessionPool"]

# Seconds to keep an unused session, and how many of them to keep at most.
_IDLE, _MOST_IDLE = 30.0, 16

_Kind: TypeAlias = tuple[UUID, frozenset[UUID]]


class SessionPool:
    """Lends sessions by repository and bypassed nodes; keeps some returned ones for later requests.

    `node_count` returns how many nodes a session with a cluster may connect to.
    """

    def __init__(
        self,
        descriptors: DescriptorBudget,
        node_count: Callable[[], Awaitable[int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._descriptors = descriptors
        self._node_count = node_count
        self._clock = clock
        self._idle: list[tuple[float, _Kind, Session]] = []
        self._reserved: dict[Session, Reserved] = {}
        self._making_room = anyio.Lock()

    @asynccontextmanager
    async def lend(self, served: Endpoint, bypass: frozenset[UUID], owner: str) -> AsyncIterator[Session]:
        """Lend a session for one request of a client that is counted by `owner`. Raises SessionError."""
        kind = served.uuid, bypass
        session = await self._reused(kind, owner) or await self._opened(served, bypass, owner)
        try:
            yield session
        except BaseException:
            await self._close(session)
            raise
        self._idle.append((self._clock(), kind, session))
        await self._close_while(lambda: len(self._idle) > _MOST_IDLE)

    async def _opened(self, served: Endpoint, bypass: frozenset[UUID], owner: str) -> Session:
        nodes = await self._node_count() if served.uuid.is_cluster else 1
        taken = await self._room_for(nodes, owner)
        try:
            session = await served.session(bypass)
        except BaseException:
            self._descriptors.give_back(taken)
            raise
        self._reserved[session] = taken
        return session

    async def _room_for(self, nodes: int, owner: str) -> Reserved:
        """Reserve descriptors. Idle sessions give way, but only the owner's own if it has its share."""
        async with self._making_room:
            while True:
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

    async def _reused(self, kind: _Kind, owner: str) -> Session | None:
        await self._close_while(self._oldest_expired)
        # The most recently used one is most likely still good.
        for index in reversed(range(len(self._idle))):
            _, known, session = self._idle[index]
            if known == kind:
                with suppress(ShareUsedUp):
                    self._reserved[session] = self._descriptors.pass_on(self._reserved[session], owner)
                    del self._idle[index]
                    return session
        return None

    async def _close_while(self, condition: Callable[[], bool]) -> None:
        """Close idle sessions, the longest idle first; other tasks may do the same meanwhile."""
        while self._idle and condition():
            await self._close(self._idle.pop(0)[2])

    async def aclose(self) -> None:
        """Close all idle sessions."""
        await self._close_while(lambda: True)

    async def close_unused(self) -> None:
        """Close sessions that stay unused, until cancelled."""
        while True:
            await anyio.sleep(_IDLE)
            await self._close_while(self._oldest_expired)

    def _oldest_expired(self) -> bool:
        return self._idle[0][0] < self._clock() - _IDLE

    async def _close(self, session: Session) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await session.aclose()
            finally:
                self._descriptors.give_back(self._reserved.pop(session))
