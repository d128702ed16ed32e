"""Ask every node about many keys, as fast as the nodes answer.

Each node has a queue of batches and several sessions that take from it; each session pipelines the questions of a
batch. Batches come back complete and in order, with every node's answers, or the fact that it gave none. However many
keys there are, only a few batches per session are in progress at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from cluster_remote.annex.locations import Batches, Located
from cluster_remote.cluster.node import Node
from cluster_remote.p2p.errors import Refused, SessionError, TimedOut
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.session import Session

__all__ = ["MOST_AT_ONCE", "Advance", "AnsweredBatch", "Nodes", "open_nodes", "pipelined"]

MOST_AT_ONCE = 32
"""Nodes to connect to at the same time: each may take a process, and others can add nodes to cluster.log."""

Advance: TypeAlias = Callable[[Node, int, bool], None]
"""Called with a node, the number of keys it has just handled, and whether it still answers."""


@dataclass(eq=False)
class AnsweredBatch:
    """A batch of keys, and each node's answers: a list for each node, in the order of the keys.

    `again` marks a batch of keys that were asked about before.
    """

    keys: Sequence[Located]
    again: bool = False
    answers: dict[UUID, list[bool | None]] = field(default_factory=dict)
    _complete: anyio.Event = field(default_factory=anyio.Event)

    async def wait(self) -> None:
        """Wait until every node has answered or has been given up."""
        await self._complete.wait()

    def complete(self) -> None:
        """Wake up those who wait: every node has answered or has been given up."""
        self._complete.set()

    def about(self, number: int) -> dict[UUID, bool | None]:
        """Return all nodes' answers about one key, by its position in the batch."""
        return {uuid: answers[number] for uuid, answers in self.answers.items()}


class _NodeQueue:
    """One node's queue of batches, and whether the node is still worth asking."""

    def __init__(self, node: Node, ahead: int, first: anyio.Semaphore) -> None:
        """Create a queue; `first` is held for a node's first answer."""
        self.node = node
        self._first = first
        self.error: str | None = None
        self.given_up = False
        self._worked = False
        send, receive = anyio.create_memory_object_stream[tuple[AnsweredBatch, int]](ahead)
        self.queue: MemoryObjectSendStream[tuple[AnsweredBatch, int]] = send
        self._taking: MemoryObjectReceiveStream[tuple[AnsweredBatch, int]] = receive

    async def work(self, advance: Advance) -> None:
        """Process the queue with a new session, until the queue is closed."""
        session = self.node.session()
        try:
            async for batch, nodes in self._taking:
                answers = await self._ask(session, [each.key for each in batch.keys])
                if not batch.again:
                    advance(self.node, len(answers), not self.given_up)
                batch.answers[self.node.uuid] = answers
                if len(batch.answers) == nodes:
                    batch.complete()
        finally:
            await session.aclose()

    def close(self) -> None:
        self.queue.close()
        self._taking.close()

    async def _ask(self, session: Session, keys: Sequence[Key]) -> list[bool | None]:
        if self._worked or self.given_up:
            return await self._answers(session, keys)
        async with self._first:
            return await self._answers(session, keys)

    async def _answers(self, session: Session, keys: Sequence[Key]) -> list[bool | None]:
        if not self.given_up:
            try:
                return self._known(await session.check_all(keys))
            except TimedOut as failure:
                self._give_up(failure)
            except SessionError as failure:
                # A connection may break; but a node that never answered, or fails twice in a row, is given up.
                if not self._worked:
                    self._give_up(failure)
                else:
                    try:
                        return self._known(await session.check_all(keys))
                    except SessionError as again:
                        self._give_up(again)
        return [None] * len(keys)

    def _known(self, answers: Sequence[bool | Refused]) -> list[bool | None]:
        self._worked = True
        for answer in answers:
            if isinstance(answer, Refused):
                self.error = self.error or str(answer)
                break
        return [None if isinstance(answer, Refused) else answer for answer in answers]

    def _give_up(self, failure: SessionError) -> None:
        if not self.given_up:
            self.given_up = True
            self.error = str(failure)


class Nodes:
    """Nodes that can be asked while `open_nodes` is open."""

    def __init__(self, queues: Sequence[_NodeQueue]) -> None:
        self._queues = tuple(queues)

    @property
    def errors(self) -> Mapping[UUID, str]:
        """Why nodes gave no answer, for those that did not."""
        return {each.node.uuid: each.error for each in self._queues if each.error is not None}

    @property
    def given_up(self) -> frozenset[UUID]:
        """The nodes that are no longer asked."""
        return frozenset(each.node.uuid for each in self._queues if each.given_up)

    async def begin(self, keys: Sequence[Located], *, again: bool = False) -> AnsweredBatch:
        """Put a batch into all queues, waiting for room in them."""
        batch = AnsweredBatch(keys, again)
        if not self._queues:
            batch.complete()
        for each in self._queues:
            await each.queue.send((batch, len(self._queues)))
        return batch

    async def ask(self, keys: Sequence[Located]) -> AnsweredBatch:
        """Ask about a batch once more, and wait for the answers."""
        batch = await self.begin(keys, again=True)
        await batch.wait()
        return batch


@asynccontextmanager
async def open_nodes(nodes: Sequence[Node], jobs: int, advance: Advance) -> AsyncIterator[Nodes]:
    """Yield nodes to ask while the context is open, with up to `jobs` sessions each, opened when first needed.

    `advance` is called when a node has handled keys that it had not been asked about before.
    """
    first = anyio.Semaphore(MOST_AT_ONCE)
    queues = [_NodeQueue(node, jobs + 1, first) for node in nodes]
    try:
        async with anyio.create_task_group() as tasks:
            for each in queues:
                for _ in range(jobs):
                    tasks.start_soon(each.work, advance)
            yield Nodes(queues)
            for each in queues:
                each.queue.close()
    finally:
        for each in queues:
            each.close()


@asynccontextmanager
async def pipelined(
    batches: Batches, nodes: Nodes, ahead: int
) -> AsyncIterator[MemoryObjectReceiveStream[AnsweredBatch]]:
    """Ask about every batch, up to `ahead` batches before the consumer; they come complete and in order."""
    starting, started = anyio.create_memory_object_stream[AnsweredBatch](ahead)
    completing, complete = anyio.create_memory_object_stream[AnsweredBatch](0)

    async def begin() -> None:
        async with starting:
            async for batch in batches:
                await starting.send(await nodes.begin(batch))

    async def finish() -> None:
        async with completing:
            async for batch in started:
                await batch.wait()
                await completing.send(batch)

    async with started, complete, anyio.create_task_group() as tasks:
        tasks.start_soon(begin)
        tasks.start_soon(finish)
        yield complete
        tasks.cancel_scope.cancel()
