"""Ask nodes: keep one session with each of them between requests, and remember failures."""

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
from cluster_remote.p2p.exhaustion import Exhausted
from cluster_remote.p2p.key import Key
from cluster_remote.p2p.session import Session
from cluster_remote.p2p.stream import Deadline

__all__ = ["NodeSessions", "Observed", "within"]

T = TypeVar("T")

# Seconds before the next node gets the same request, and the largest fraction of the timeout that this may be: behind
# a gateway, all nodes together share the client's timeout.
_HEAD_START, _MAX_FRACTION = 2.0, 0.2


class Observed:
    """One request to one node while it runs."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.has_progressed = False

    def progressed(self) -> None:
        """Note that the node has answered, or accepted data."""
        self.has_progressed = True


class NodeSessions:
    """The sessions with the nodes of one cluster session, each created when first needed.

    `timeout` is how long a node may take to answer, in seconds, including connecting.
    """

    def __init__(self, timeout: float, reachability: Reachability) -> None:
        self.timeout = timeout
        self.head_start = min(_HEAD_START, timeout * _MAX_FRACTION)
        self._reachability = reachability
        self._sessions: dict[str, Session] = {}

    @property
    def traffic(self) -> Traffic:
        """Return which nodes downloads read from, in all sessions that share the reachability."""
        return self._reachability.traffic

    def session(self, node: Node) -> Session:
        """Return the session with a node. Raises Unreachable if there is none."""
        session = self._sessions.get(node.name)
        if session is None:
            try:
                session = node.session()
            except ValueError as error:
                raise Unreachable(str(error)) from None
            self._sessions[node.name] = session
        return session

    async def aclose(self) -> None:
        """Close all of them concurrently."""
        sessions, self._sessions = self._sessions, {}
        async with anyio.create_task_group() as tasks:
            for session in sessions.values():
                tasks.start_soon(session.aclose)

    # Choosing nodes

    def split_resting(self, nodes: Iterable[Node]) -> tuple[list[Node], list[Node]]:
        """Return the nodes to ask, with recently silent ones last, and those to skip for now."""
        awake: list[Node] = []
        resting: list[Node] = []
        for node in nodes:
            (resting if self._reachability.resting(node.name) else awake).append(node)
        return sorted(awake, key=lambda node: self._reachability.was_silent(node.name)), resting

    def recent_senders_last(self, key: Key, nodes: Iterable[Node]) -> list[Node]:
        """Move the nodes that served this content recently to the end, the last one last.

        A client that asks again has a reason: the content was damaged, or the transfer broke off.
        """
        senders = self._reachability.senders(key)
        return sorted(nodes, key=lambda node: senders.index(node.name) if node.name in senders else -1)

    def silent(self, node: Node) -> None:
        """Remember that a node missed its head start: for a while, reads go to others first."""
        self._reachability.silent(node.name, self.head_start)

    def sends(self, key: Key, node: Node) -> None:
        """Remember that a node has started to send this content."""
        self._reachability.sends(key, node.name)

    def not_tried(self, node: Node) -> Unreachable:
        """Return the error for a node that is skipped."""
        return NotTried(self._reachability.resting(node.name) or f"{node} was unreachable a moment ago: left out")

    @contextmanager
    def observed(self, node: Node) -> Iterator[Observed]:
        """Wrap one request to a node, and remember whether the node was reachable."""
        observed = Observed(self._reachability.clock())
        try:
            yield observed
        except (SourceError, Exhausted):
            # This says nothing about the node.
            raise
        except Unreachable as error:
            self._unreachable(node, observed, error)
            raise
        except (Refused, ProtocolError, ConnectionLost):
            # It was reachable, but could not handle this key; other keys are unaffected. If it is gone by now, the next
            # connection will fail.
            self._reachability.answered(node.name)
            raise
        except SessionError as error:
            if observed.has_progressed:
                self.failed_midway(node, error)
            else:
                self._unreachable(node, observed, error)
            raise
        else:
            self._reachability.answered(node.name)

    def _unreachable(self, node: Node, observed: Observed, error: SessionError) -> None:
        self._reachability.failed(node.name, self._reachability.clock() - observed.began, reason(node, error))

    def failed_midway(self, node: Node, error: SessionError) -> None:
        """Note that a node failed after it had started to work on a request."""
        # An immediate failure costs nothing; a stall costs the whole timeout.
        if isinstance(error, TimedOut):
            self._reachability.failed(node.name, self.timeout, reason(node, error))

    # Asking

    async def answer_of(
        self, node: Node, request: Callable[[Session], Awaitable[T]], extra_timeout: float = 0.0
    ) -> T | SessionError:
        """Return a node's answer to one request, or the error if there is none."""
        seconds = self.timeout + extra_timeout
        try:
            with self.observed(node), Deadline(seconds, f"no answer within {seconds:.3g} seconds"):
                return await request(self.session(node))
        except SessionError as error:
            return error

    async def ask_until(
        self, good: T, groups: Iterable[Collection[Node]], request: Callable[[Session], Awaitable[T]]
    ) -> list[tuple[Node, T | SessionError]]:
        """Ask one group after another until a node gives the `good` answer; return the answers so far.

        The nodes of a group are asked concurrently; the next group, once all earlier ones have answered or missed
        their head start. The good answer cancels all other requests.
        """
        answers: list[tuple[Node, T | SessionError]] = []
        groups = [group for group in groups if group]
        if not groups:
            # Every new file is checked like this, and a task group would be most of the work.
            return answers
        asked: list[Node] = []
        new_answer = anyio.Event()

        async def one(node: Node) -> None:
            answer = await self.answer_of(node, request)
            answers.append((node, answer))
            if answer == good:
                tasks.cancel_scope.cancel()
            new_answer.set()

        async with anyio.create_task_group() as tasks:
            for group in groups:
                for node in group:
                    asked.append(node)
                    tasks.start_soon(one, node)
                with anyio.move_on_after(self.head_start) as waiting:
                    while len(answers) < len(asked):
                        new_answer = anyio.Event()
                        await new_answer.wait()
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
    """Enter a context within `seconds`. Raises TimedOut."""
    with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
        async with context as entered:
            scope.deadline = math.inf
            yield entered
    if scope.cancelled_caught:
        raise TimedOut(f"no answer within {seconds:.3g} seconds")
