"""One upload to many nodes.

In two steps, for a content that comes as a stream: the nodes are asked all at once from where on they want it, the
lowest of these offsets is the cluster's answer, then each gets its share. In one step, for a file: each node's upload
goes from the offer to the outcome by itself, and nobody waits for anybody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from cluster_remote.cluster.fanout import Share, SlowestProgress, distribute
from cluster_remote.cluster.node import Node
from cluster_remote.cluster.routing import UploadAnswer
from cluster_remote.p2p.errors import Refused, SessionError, SourceError
from cluster_remote.p2p.session import Present, Progress, Source, Stored, Upload

__all__ = ["Attempt", "ClusterUpload", "Offer", "StoreOne", "store_everywhere", "task_group"]

# An upload to one node, as far as its offer.
Offer = Callable[[Node], AbstractAsyncContextManager[Present | Upload]]
# An upload to one node from the offer to the outcome.
StoreOne = Callable[[Node, Progress], Awaitable[Present | Stored]]


@asynccontextmanager
async def task_group(wait: bool = False) -> AsyncIterator[TaskGroup]:
    """A task group whose body's errors end the tasks and come out as they are, not in a group.

    At the end of the body the tasks are ended too, or waited for.
    """
    raised: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except anyio.get_cancelled_exc_class():
            raise
        except Exception as error:  # noqa: BLE001 -- raised again below
            raised = error
        if raised is not None or not wait:
            tasks.cancel_scope.cancel()
    if raised is not None:
        raise raised


class Attempt:
    """The upload to one node in two steps, in a task of its own: a session's contexts do not change tasks."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.offset: int | None = None
        """From where on the node wants the content, in bytes; None if it does not."""
        self.answer: UploadAnswer | None = None
        """What came of it, once that is known."""
        self.offered = anyio.Event()
        self.ended = anyio.Event()
        self._begin = anyio.Event()
        self._scope = anyio.CancelScope()
        self._source: Source | None = None
        self._looking = False
        self._progress: Progress | None = None

    async def run(self, offer: Offer) -> None:
        """Asks the node, waits for `send`, and sends. All that can happen ends up in `answer`."""
        try:
            with self._scope:
                async with offer(self.node) as offered:
                    if isinstance(offered, Present):
                        self.answer = offered
                        return
                    self.offset = offered.offset
                    self.offered.set()
                    await self._begin.wait()
                    if self._looking:
                        self.answer = await offered.look()
                        return
                    assert self._source is not None
                    self.answer = await offered.send(self._source, self._progress)
        except SessionError as error:
            self.answer = error
        finally:
            self.offered.set()
            self.ended.set()

    def send(self, source: Source, progress: Progress) -> None:
        """Lets the node have the content. To be called once, if it wants it."""
        self._source = source
        self._progress = progress
        self._begin.set()

    def look(self) -> None:
        """Have the node look whether it has the content already. To be called once, in place of `send`."""
        self._looking = True
        self._begin.set()

    def give_up(self, reason: SessionError) -> None:
        """Ends the attempt, unless it has ended."""
        if self.answer is None:
            self.answer = reason
            self._scope.cancel()


class ClusterUpload(Upload):
    """All nodes that wait for a content."""

    def __init__(
        self, failing: str, attempts: Sequence[tuple[Attempt, int]], conclude: Callable[[], Awaitable[Stored]]
    ) -> None:
        """`attempts` come with the offsets that the nodes asked for, one at least.

        `conclude` makes one outcome of what all nodes answered, and records it. `failing` begins the error that
        names the reasons of all of them.
        """
        self._failing = failing
        self.offset = min(offset for _, offset in attempts)
        self._attempts = attempts
        self._conclude = conclude

    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        """See Upload. Raises SessionError also when every node failed before a stream was read to its end."""
        pace = SlowestProgress(progress)
        pace.begin((attempt.node.name, offset) for attempt, offset in self._attempts)
        try:
            complete = await (self._send_file if source.repeatable else self._send_stream)(source, pace)
        except SessionError as error:
            await self._give_up(error)
            await self._conclude()
            raise
        outcome = await self._conclude()
        if not complete:
            raise SessionError(f"{self._failing}: {'; '.join(outcome.reasons)}")
        return outcome

    async def look(self) -> Stored:
        """See Upload. Every node looks for itself."""
        for attempt, _ in self._attempts:
            attempt.look()
        for attempt, _ in self._attempts:
            await attempt.ended.wait()
        return await self._conclude()

    async def _send_file(self, source: Source, pace: SlowestProgress) -> bool:
        async with anyio.create_task_group() as tasks:

            async def send(attempt: Attempt) -> None:
                attempt.send(source, pace.of(attempt.node.name))
                await attempt.ended.wait()
                if isinstance(attempt.answer, SessionError):
                    pace.drop(attempt.node.name)
                if isinstance(attempt.answer, SourceError):
                    # What cannot be read for one cannot be read for any.
                    tasks.cancel_scope.cancel()

            for attempt, _ in self._attempts:
                tasks.start_soon(send, attempt)
        for attempt, _ in self._attempts:
            if isinstance(attempt.answer, SourceError):
                raise attempt.answer
        return True

    async def _send_stream(self, source: Source, pace: SlowestProgress) -> bool:
        """Whether the source was read to its end."""
        async with source.read(self.offset) as reading:
            end = self.offset + reading.length
            shares: list[Share] = []
            async with task_group(wait=True) as tasks:

                async def send(attempt: Attempt, share: Share) -> None:
                    attempt.send(share, pace.of(attempt.node.name))
                    await attempt.ended.wait()
                    share.close()
                    if isinstance(attempt.answer, SessionError):
                        pace.drop(attempt.node.name)

                for attempt, offset in self._attempts:
                    if offset > end:
                        attempt.give_up(
                            Refused(f"it says that it has {offset} bytes of a content that has {end} bytes")
                        )
                        pace.drop(attempt.node.name)
                        continue
                    shares.append(Share(offset, end))
                    tasks.start_soon(send, attempt, shares[-1])
                return await distribute(reading, self.offset, shares)

    async def _give_up(self, failure: SessionError) -> None:
        for attempt, _ in self._attempts:
            attempt.give_up(failure)
        for attempt, _ in self._attempts:
            await attempt.ended.wait()


async def store_everywhere(
    nodes: Sequence[Node], store: StoreOne, progress: Progress | None
) -> tuple[list[tuple[Node, UploadAnswer]], SourceError | None]:
    """Uploads to each node by itself. Gives what each answered, and the error of the source that ended it for all."""
    pace = SlowestProgress(progress)
    pace.begin((node.name, 0) for node in nodes)
    answers: dict[str, UploadAnswer] = {}
    failures: list[SourceError] = []

    async with anyio.create_task_group() as tasks:

        async def one(node: Node) -> None:
            try:
                answer: UploadAnswer = await store(node, pace.of(node.name))
            except SourceError as error:
                failures.append(error)
                answer = error
                tasks.cancel_scope.cancel()
            except SessionError as error:
                answer = error
            answers[node.name] = answer
            if not (isinstance(answer, Stored) and answer.stored):
                pace.drop(node.name)

        for node in nodes:
            tasks.start_soon(one, node)

    return [(node, answers[node.name]) for node in nodes if node.name in answers], next(iter(failures), None)
