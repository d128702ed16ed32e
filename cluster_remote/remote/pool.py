"""A pool of sessions that grows with the number of concurrent requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import anyio

from cluster_remote.p2p.client import StreamSession
from cluster_remote.p2p.errors import NoRoom
from cluster_remote.p2p.session import Session
from cluster_remote.p2p.stream import Trace

if TYPE_CHECKING:
    from cluster_remote.p2p.messages import Message

__all__ = ["SessionPool"]

# Seconds between looks at whether another session has connected.
_POLL = 0.01


class _Forwarder:
    """A trace that forwards to the current borrower of the session."""

    def __init__(self) -> None:
        self.trace: Trace | None = None

    def __call__(self, outgoing: bool, message: Message) -> None:
        if self.trace is not None:
            self.trace(outgoing, message)


class SessionPool:
    """Lend each session to one request at a time, and create a new one only if all are lent.

    So there are never more sessions than the highest number of concurrent requests. Beyond `most`, if that is given,
    requests wait until a session is returned; each request has its own deadlines.
    """

    def __init__(self, make: Callable[[Trace], Awaitable[Session]], most: int | None = None) -> None:
        self._make = make
        self._room = nullcontext() if most is None else anyio.Semaphore(most)
        self._idle: list[tuple[Session, _Forwarder]] = []
        self._lent: list[Session] = []
        self._returned = anyio.Event()

    @asynccontextmanager
    async def lend(self, trace: Trace | None) -> AsyncIterator[Session]:
        """Lend a session exclusively. `trace` receives its messages."""
        async with self._room:
            session, forwarder = await self._take()
            forwarder.trace = trace
            try:
                yield session
            finally:
                forwarder.trace = None
                self._idle.append((session, forwarder))
                self._lent.remove(session)
                returned, self._returned = self._returned, anyio.Event()
                returned.set()

    async def _take(self) -> tuple[Session, _Forwarder]:
        while True:
            if self._idle:
                session, forwarder = self._idle.pop()
            else:
                forwarder = _Forwarder()
                session = await self._make(forwarder)
            self._lent.append(session)
            try:
                await self._connect_besides_others(session)
            except NoRoom:
                # The server has no room for so many connections. So this job uses one of the others, in turn.
                self._lent.remove(session)
                while self._lent and not self._idle:
                    await self._returned.wait()
            except BaseException:
                self._lent.remove(session)
                raise
            else:
                return session, forwarder

    async def _connect_besides_others(self, session: Session) -> None:
        """Connect now if other sessions are in use, so that the request need not fail for lack of room.

        The first one connects by itself, if its request needs it.
        """
        if isinstance(session, StreamSession):
            while len(self._lent) > 1 and all(other.version is None for other in self._lent):
                await anyio.sleep(_POLL)
            if len(self._lent) > 1:
                await session.open()

    async def aclose(self) -> None:
        """Close all sessions that are not lent, concurrently."""
        idle, self._idle = self._idle, []
        async with anyio.create_task_group() as tasks:
            for session, _listener in idle:
                tasks.start_soon(session.aclose)
