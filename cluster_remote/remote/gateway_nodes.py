"""Reach the nodes behind a gateway individually: the gateway answers for all, without details about each node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from cluster_remote.cluster.reachability import Reachability
from cluster_remote.p2p.errors import NotTried, SessionError, TimedOut, Unreachable
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Session
from cluster_remote.p2p.stream import Trace
from cluster_remote.remote.pool import SessionPool

__all__ = ["GatewayNodes"]

T = TypeVar("T")

# How many nodes to ask at once: an ssh server may not accept more connections.
_MAX_CONCURRENT = 8


class GatewayNodes:
    """Sessions with single nodes, created on demand. `make` creates one, through the gateway."""

    def __init__(self, make: Callable[[UUID, Trace], Awaitable[Session]]) -> None:
        self._make = make
        self._pools: dict[UUID, SessionPool] = {}
        self._reachability = Reachability()

    @asynccontextmanager
    async def session(self, node: UUID) -> AsyncIterator[Session]:
        """Lend a session with one node exclusively."""
        pool = self._pools.setdefault(node, SessionPool(lambda trace: self._make(node, trace)))
        async with pool.lend(None) as session:
            yield session

    async def each(
        self, nodes: Iterable[UUID], request: Callable[[Session], Awaitable[T]]
    ) -> dict[UUID, T | SessionError]:
        """Ask several nodes at once; return each answer, or the error if there is none."""
        answers: dict[UUID, T | SessionError] = {}
        slots = anyio.Semaphore(_MAX_CONCURRENT)

        async def one(node: UUID) -> None:
            async with slots, self.session(node) as session:
                try:
                    answers[node] = await request(session)
                except SessionError as error:
                    answers[node] = error

        async with anyio.create_task_group() as tasks:
            for node in nodes:
                tasks.start_soon(one, node)
        return answers

    async def first(
        self, nodes: Iterable[UUID], request: Callable[[Session], Awaitable[bool]]
    ) -> tuple[UUID | None, dict[UUID, SessionError]]:
        """Ask several nodes at once; return the first that says yes, or None and the errors of those without an answer.

        Skips nodes that were unreachable a moment ago.
        """
        found: UUID | None = None
        failures: dict[UUID, SessionError] = {}
        slots = anyio.Semaphore(_MAX_CONCURRENT)

        async def one(node: UUID) -> None:
            nonlocal found
            resting, began = self._reachability.resting(node.text), self._reachability.clock()
            if resting is not None:
                failures[node] = NotTried(resting)
                return
            try:
                async with slots, self.session(node) as session:
                    if await request(session) and found is None:
                        found = node
                        tasks.cancel_scope.cancel()
            except SessionError as error:
                failures[node] = error
                if isinstance(error, Unreachable | TimedOut):
                    self._reachability.failed(node.text, self._reachability.clock() - began, str(error))

        async with anyio.create_task_group() as tasks:
            for node in nodes:
                tasks.start_soon(one, node)
        return found, failures

    async def aclose(self) -> None:
        """Close all sessions concurrently. Bounded in time."""
        async with anyio.create_task_group() as tasks:
            for pool in self._pools.values():
                tasks.start_soon(pool.aclose)
