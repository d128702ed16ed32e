"""Ask every node about many keys, as fast as the nodes answer.

Each node has a queue of batches, and several sessions that take from it; each session pipelines the questions of a
batch. Batches come back in order and complete, with every node's answers, or the fact that it gave none. Only a few
batches per session are in progress at a time, however many keys there are.
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

__all__ = ["Advance", "Answered", "Nodes", "asked", "pipelined"]

Advance: TypeAlias = Callable[[Node, int, bool], None]
"""Called when a node has handled that many more keys; the flag says whether it still answers."""


@dataclass(eq=False)
class Answered:
    """A batch of keys, and each node's answers: a list for each node, in the order of the keys.

    `again` marks a batch of keys that were asked about before.
    """

    keys: Sequence[Located]
    again: bool = False
    answers: dict[UUID, list[bool | None]] = field(default_factory=dict)
    _complete: anyio.Event = field(default_factory=anyio.Event)

    async def wait(self) -> None:
        """Wait until every node has answered or been given up."""
        await self._complete.wait()

    def answered(self) -> None:
        """Note that every node has answered."""
        self._complete.set()

    def of(self, number: int) -> dict[UUID, bool | None]:
        """Return what all nodes said about one key."""
        return {uuid: answers[number] for uuid, answers in self.answers.items()}


class _Asked:
    """One node: its queue, its sessions, and whether it is still worth asking."""

    def __init__(self, node: Node, ahead: int) -> None:
        self.node = node
        self.error: str | None = None
        self.given_up = False
        self._worked = False
        send, receive = anyio.create_memory_object_stream[tuple[Answered, int]](ahead)
        self.queue: MemoryObjectSendStream[tuple[Answered, int]] = send
        self._taking: MemoryObjectReceiveStream[tuple[Answered, int]] = receive

    async def work(self, advance: Advance) -> None:
        """Process the queue with a session of its own, until the queue is closed."""
        session = self.node.session()
        try:
            async for batch, nodes in self._taking:
                answers = await self._ask(session, [each.key for each in batch.keys])
                if not batch.again:
                    advance(self.node, len(answers), not self.given_up)
                batch.answers[self.node.uuid] = answers
                if len(batch.answers) == nodes:
                    batch.answered()
        finally:
            await session.aclose()

    def close(self) -> None:
        self.queue.close()
        self._taking.close()

    async def _ask(self, session: Session, keys: Sequence[Key]) -> list[bool | None]:
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
    """Nodes that can be asked while `asked` is open."""

    def __init__(self, asked: Sequence[_Asked]) -> None:
        self._asked = tuple(asked)

    @property
    def errors(self) -> Mapping[UUID, str]:
        """Return why nodes gave no answer, for those that did not."""
        return {each.node.uuid: each.error for each in self._asked if each.error is not None}

    @property
    def given_up(self) -> frozenset[UUID]:
        """The nodes that are no longer asked."""
        return frozenset(each.node.uuid for each in self._asked if each.given_up)

    async def begin(self, keys: Sequence[Located], *, again: bool = False) -> Answered:
        """Put a batch into all queues, as soon as there is room."""
        batch = Answered(keys, again)
        if not self._asked:
            batch.answered()
        for each in self._asked:
            await each.queue.send((batch, len(self._asked)))
        return batch

    async def ask(self, keys: Sequence[Located]) -> Answered:
        """Ask about a batch once more, and wait for the answers."""
        batch = await self.begin(keys, again=True)
        await batch.wait()
        return batch


@asynccontextmanager
async def asked(nodes: Sequence[Node], jobs: int, advance: Advance) -> AsyncIterator[Nodes]:
    """Ask nodes while the context is open, with up to `jobs` sessions each, opened when first needed.

    `advance` is called when a node has handled keys for the first time.
    """
    each_asked = [_Asked(node, jobs + 1) for node in nodes]
    try:
        async with anyio.create_task_group() as tasks:
            for each in each_asked:
                for _ in range(jobs):
                    tasks.start_soon(each.work, advance)
            yield Nodes(each_asked)
            for each in each_asked:
                each.queue.close()
    finally:
        for each in each_asked:
            each.close()


@asynccontextmanager
async def pipelined(batches: Batches, nodes: Nodes, ahead: int) -> AsyncIterator[MemoryObjectReceiveStream[Answered]]:
    """Ask about every batch, `ahead` of the consumer; batches come complete and in order."""
    starting, started = anyio.create_memory_object_stream[Answered](ahead)
    completing, complete = anyio.create_memory_object_stream[Answered](0)

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
