"""A pool of sessions that grows with the number of concurrent requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import anyio

from cluster_remote.p2p.session import Session
from cluster_remote.p2p.stream import Trace

if TYPE_CHECKING:
    from cluster_remote.p2p.messages import Message

__all__ = ["SessionPool"]


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

    @asynccontextmanager
    async def lend(self, trace: Trace | None) -> AsyncIterator[Session]:
        """Lend a session exclusively. `trace` receives its messages."""
        async with self._room:
            if self._idle:
                session, forwarder = self._idle.pop()
            else:
                forwarder = _Forwarder()
                session = await self._make(forwarder)
            forwarder.trace = trace
            try:
                yield session
            finally:
                forwarder.trace = None
                self._idle.append((session, forwarder))

    async def aclose(self) -> None:
        """Close all sessions that are not lent, concurrently."""
        idle, self._idle = self._idle, []
        async with anyio.create_task_group() as tasks:
            for session, _listener in idle:
                tasks.start_soon(session.aclose)
