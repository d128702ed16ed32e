"""Sessions lent to one request at a time, for clients without a connection of their own."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import anyio

from cluster_remote.gateway.room import Room
from cluster_remote.p2p.errors import Unreachable
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.server import Endpoint
from cluster_remote.p2p.session import Session

__all__ = ["Lending"]

# Seconds to keep an unused session, and how many of them to keep at most.
_IDLE, _MOST_IDLE = 30.0, 16

_Kind: TypeAlias = tuple[UUID, frozenset[UUID]]


class Lending:
    """Lends sessions by what they lead to; keeps some returned ones for later requests.

    `size` returns how many nodes a session with a cluster may connect to.
    """

    def __init__(
        self, room: Room, size: Callable[[], Awaitable[int]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._room = room
        self._size = size
        self._clock = clock
        self._idle: list[tuple[float, _Kind, Session]] = []
        self._taken_room: dict[Session, int] = {}

    @asynccontextmanager
    async def lend(self, served: Endpoint, bypass: frozenset[UUID]) -> AsyncIterator[Session]:
        """Lend a session for one request. Raises SessionError."""
        kind = served.uuid, bypass
        session = await self._taken(kind) or await self._opened(served, bypass)
        try:
            yield session
        except BaseException:
            await self._close(session)
            raise
        self._idle.append((self._clock(), kind, session))
        await self._let_go(lambda: len(self._idle) > _MOST_IDLE)

    async def _opened(self, served: Endpoint, bypass: frozenset[UUID]) -> Session:
        nodes = await self._size() if served.uuid.is_cluster else 1
        try:
            taken = self._room.take(nodes)
        except Unreachable:
            await self.aclose()
            taken = self._room.take(nodes)
        try:
            session = await served.session(bypass)
        except BaseException:
            self._room.give_back(taken)
            raise
        self._taken_room[session] = taken
        return session

    async def _taken(self, kind: _Kind) -> Session | None:
        await self._let_go(self._overdue)
        # The most recently used one is most likely still good.
        for place in reversed(range(len(self._idle))):
            if self._idle[place][1] == kind:
                return self._idle.pop(place)[2]
        return None

    async def _let_go(self, too_many: Callable[[], bool]) -> None:
        """Close sessions, those that have been idle the longest first; others may do the same meanwhile."""
        while self._idle and too_many():
            await self._close(self._idle.pop(0)[2])

    async def aclose(self) -> None:
        """Close all idle sessions."""
        await self._let_go(lambda: True)

    async def let_go_in_time(self) -> None:
        """Close sessions that stay unused, until cancelled."""
        while True:
            await anyio.sleep(_IDLE)
            await self._let_go(self._overdue)

    def _overdue(self) -> bool:
        return self._idle[0][0] < self._clock() - _IDLE

    async def _close(self, session: Session) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await session.aclose()
            finally:
                self._room.give_back(self._taken_room.pop(session))
