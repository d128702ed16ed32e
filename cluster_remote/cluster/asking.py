"""Asking nodes: one session with each, kept from request to request, and what is remembered of those that fail."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TypeVar

import anyio

from cluster_remote.cluster.node import Node
from cluster_remote.cluster.reachability import Reachability, Traffic
from cluster_remote.cluster.routing import reason
from cluster_remote.p2p.errors import (
    ConnectionLost,
    NotTried,
    ProtocolError,
    Refused,
    SessionError,
    SourceError,
    TimedOut,
    Unreachable,
)
from cluster_remote.p2p.key import Key
from cluster_remote.p2p.session import Session

__all__ = ["NodeSessions", "Observed", "within"]

T = TypeVar("T")

# Seconds that a node has to itself before the next one is asked the same, and the part of the timeout that this is at
# most: behind a gateway, the client's patience is for all nodes together.
_HEAD_START, _PART_OF_TIMEOUT = 2.0, 0.2


class Observed:
    """One request to one node, as it goes on."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.has_moved = False

    def moved(self) -> None:
        """The node has answered, or taken something."""
        self.has_moved = True


class NodeSessions:
    """The sessions with the nodes of one cluster session, each made when it is first needed.

    `timeout` is how long a node may take to say anything, in seconds, its connection included.
    """

    def __init__(self, timeout: float, reachability: Reachability) -> None:
        self.timeout = timeout
        self.head_start = min(_HEAD_START, timeout * _PART_OF_TIMEOUT)
        self._reachability = reachability
        self._sessions: dict[str, Session] = {}

    @property
    def traffic(self) -> Traffic:
        """Which nodes are read from, by all that share what is remembered of the nodes."""
        return self._reachability.traffic

    def session(self, node: Node) -> Session:
        """The session with a node. Raises Unreachable if there can be none."""
        session = self._sessions.get(node.name)
        if session is None:
            try:
                session = node.session()
            except ValueError as error:
                raise Unreachable(str(error)) from None
            self._sessions[node.name] = session
        return session

    async def aclose(self) -> None:
        """Closes them all at once."""
        sessions, self._sessions = self._sessions, {}
        async with anyio.create_task_group() as tasks:
            for session in sessions.values():
                tasks.start_soon(session.aclose)

    # Whom to ask

    def rested(self, nodes: Iterable[Node]) -> tuple[list[Node], list[Node]]:
        """Those to be asked, the ones that were silent lately at the end, and those that are left alone for now."""
        awake: list[Node] = []
        resting: list[Node] = []
        for node in nodes:
            (resting if self._reachability.resting(node.name) else awake).append(node)
        return sorted(awake, key=lambda node: self._reachability.was_silent(node.name)), resting

    def others_first(self, key: Key, nodes: Iterable[Node]) -> list[Node]:
        """Move the nodes that have given this content lately to the end, the last one last.

        A client that asks again has reason to: what one of them gave was damaged, or broke off.
        """
        givers = self._reachability.givers(key)
        return sorted(nodes, key=lambda node: givers.index(node.name) if node.name in givers else -1)

    def silent(self, node: Node) -> None:
        """Remember that a node has let its head start pass: reads go to others first for a while."""
        self._reachability.silent(node.name, self.head_start)

    def gives(self, key: Key, node: Node) -> None:
        """Remember that a node has begun to give this content."""
        self._reachability.gives(key, node.name)

    def not_tried(self, node: Node) -> Unreachable:
        """What a node that is left alone has instead of an answer."""
        return NotTried(self._reachability.resting(node.name) or f"{node} could not be reached a moment ago: left out")

    @contextmanager
    def observed(self, node: Node) -> Iterator[Observed]:
        """Around all that is asked of a node in one request: remembers whether it could be reached."""
        observed = Observed(self._reachability.clock())
        try:
            yield observed
        except SourceError:
            # That says nothing of the node.
            raise
        except Unreachable as error:
            self._away(node, observed, error)
            raise
        except (Refused, ProtocolError, ConnectionLost):
            # It let us in and then could not deal with this key; the others are none the worse for that. If it is
            # gone, the next connection will show it.
            self._reachability.answered(node.name)
            raise
        except SessionError as error:
            if observed.has_moved:
                self.broke_off(node, error)
            else:
                self._away(node, observed, error)
            raise
        else:
            self._reachability.answered(node.name)

    def _away(self, node: Node, observed: Observed, error: SessionError) -> None:
        self._reachability.failed(node.name, self._reachability.clock() - observed.began, reason(node, error))

    def broke_off(self, node: Node, error: SessionError) -> None:
        """A node failed that had begun to do what it was asked."""
        # What ended at once cost nothing to find out; what stalled has cost the deadline.
        if isinstance(error, TimedOut):
            self._reachability.failed(node.name, self.timeout, reason(node, error))

    # Asking

    @contextmanager
    def deadline(self, patience: float = 0.0) -> Iterator[None]:
        """Raises TimedOut after the timeout and `patience` seconds."""
        seconds = self.timeout + patience
        try:
            with anyio.fail_after(seconds):
                yield
        except TimeoutError:
            raise TimedOut(f"no answer within {seconds:.3g} seconds") from None

    async def caught(
        self, node: Node, request: Callable[[Session], Awaitable[T]], patience: float = 0.0
    ) -> T | SessionError:
        """A node's answer to one request, or why there is none."""
        try:
            with self.observed(node), self.deadline(patience):
                return await request(self.session(node))
        except SessionError as error:
            return error

    async def until(
        self, good: T, groups: Iterable[Collection[Node]], request: Callable[[Session], Awaitable[T]]
    ) -> list[tuple[Node, T | SessionError]]:
        """Ask group after group until a node gives the `good` answer, and return the answers that came.

        The nodes of a group are asked at once; the next group when all before it have answered, or have been silent
        for their head start. After the good answer the others are not waited for.
        """
        answers: list[tuple[Node, T | SessionError]] = []
        asked: list[Node] = []
        news = anyio.Event()

        async def one(node: Node) -> None:
            answer = await self.caught(node, request)
            answers.append((node, answer))
            if answer == good:
                tasks.cancel_scope.cancel()
            news.set()

        async with anyio.create_task_group() as tasks:
            for group in groups:
                for node in group:
                    asked.append(node)
                    tasks.start_soon(one, node)
                with anyio.move_on_after(self.head_start) as waiting:
                    while len(answers) < len(asked):
                        news = anyio.Event()
                        await news.wait()
                if waiting.cancelled_caught:
                    answered = {node for node, _ in answers}
                    for node in asked:
                        if node not in answered:
                            self.silent(node)
                if any(answer == good for _, answer in answers):
                    break
        return answers


@asynccontextmanager
async def within(seconds: float, context: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """A context that has to be entered within so many seconds. Raises TimedOut."""
    with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
        async with context as entered:
            scope.deadline = math.inf
            yield entered
    if scope.cancelled_caught:
        raise TimedOut(f"no answer within {seconds:.3g} seconds")
