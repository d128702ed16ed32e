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

# Seconds between looks at whether another session has connected, and for which to wait for that.
_POLL, _PATIENCE = 0.01, 2.0


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
        # Those whose requests run: each ends by its own deadlines.
        self._lent: list[Session] = []
        self._returned = anyio.Event()

    @asynccontextmanager
    async def lend(self, trace: Trace | None) -> AsyncIterator[Session]:
        """Lend a session exclusively. `trace` receives its messages."""
        async with self._room:
            session, forwarder = await self._take(trace)
            try:
                yield session
            finally:
                forwarder.trace = None
                self._idle.append((session, forwarder))
                self._lent.remove(session)
                returned, self._returned = self._returned, anyio.Event()
                returned.set()

    async def _take(self, trace: Trace | None) -> tuple[Session, _Forwarder]:
        while True:
            if self._idle:
                session, forwarder = self._idle.pop()
            else:
                forwarder = _Forwarder()
                session = await self._make(forwarder)
            forwarder.trace = trace
            try:
                await self._connect_besides_others(session)
            except NoRoom:
                # The server has no room for so many connections. So this job uses one of the others, in turn.
                while self._lent and not self._idle:
                    await self._returned.wait()
            else:
                self._lent.append(session)
                return session, forwarder

    async def _connect_besides_others(self, session: Session) -> None:
        """Connect now if other requests run, so that this one need not fail for lack of room. Raises SessionError.

        The first one connects by itself, if it needs to; the others wait for that, but not for long.
        """
        if isinstance(session, StreamSession) and session.version is None:
            with anyio.move_on_after(_PATIENCE):
                while self._lent and all(other.version is None for other in self._lent):
                    await anyio.sleep(_POLL)
            if self._lent:
                await session.open()

    async def aclose(self) -> None:
        """Close all sessions that are not lent, concurrently."""
        idle, self._idle = self._idle, []
        async with anyio.create_task_group() as tasks:
            for session, _listener in idle:
                tasks.start_soon(session.aclose)
