"""A pool of sessions that grows with the number of concurrent requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from cluster_remote.p2p.session import Session
from cluster_remote.p2p.stream import Trace

if TYPE_CHECKING:
    from cluster_remote.p2p.messages import Message

__all__ = ["SessionPool"]


class _Listener:
    """A trace that goes to the current user of the session."""

    def __init__(self) -> None:
        self.trace: Trace | None = None

    def __call__(self, outgoing: bool, message: Message) -> None:
        if self.trace is not None:
            self.trace(outgoing, message)


class SessionPool:
    """Lends each session to one request at a time, and creates a new one only if all are lent.

    So there are never more sessions than there were concurrent requests.
    """

    def __init__(self, make: Callable[[Trace], Awaitable[Session]]) -> None:
        self._make = make
        self._idle: list[tuple[Session, _Listener]] = []

    @asynccontextmanager
    async def lend(self, trace: Trace | None) -> AsyncIterator[Session]:
        """Lend a session exclusively. `trace` gets its messages."""
        if self._idle:
            session, listener = self._idle.pop()
        else:
            listener = _Listener()
            session = await self._make(listener)
        listener.trace = trace
        try:
            yield session
        finally:
            listener.trace = None
            self._idle.append((session, listener))

    async def aclose(self) -> None:
        """Close all sessions that are not lent, concurrently."""
        idle, self._idle = self._idle, []
        async with anyio.create_task_group() as tasks:
            for session, _listener in idle:
                tasks.start_soon(session.aclose)
