"""Upload one content to many nodes.

A stream takes two steps: all nodes are asked concurrently where to start, the lowest of these offsets is the cluster's
answer, and then each node gets its part. A file takes one step: each node's upload runs independently from the offer to
the outcome.
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

# An upload to one node, up to its offer.
Offer = Callable[[Node], AbstractAsyncContextManager[Present | Upload]]
# A complete upload to one node.
StoreOne = Callable[[Node, Progress], Awaitable[Present | Stored]]


@asynccontextmanager
async def task_group(wait: bool = False) -> AsyncIterator[TaskGroup]:
    """Open a task group that raises the body's errors unwrapped, after cancelling its tasks.

    At the end of the body, cancel the tasks too, or `wait` for them.
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
    """The two-step upload to one node, in a task of its own: a session's contexts must stay in one task."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.offset: int | None = None
        """The offset that the node requests, in bytes; None if it does not want the content."""
        self.answer: UploadAnswer | None = None
        """The result, once known."""
        self.offered = anyio.Event()
        self.ended = anyio.Event()
        self._begin = anyio.Event()
        self._scope = anyio.CancelScope()
        self._source: Source | None = None
        self._checking = False
        self._progress: Progress | None = None

    async def run(self, offer: Offer) -> None:
        """Ask the node, wait for `send`, and send. Every result ends up in `answer`."""
        try:
            with self._scope:
                async with offer(self.node) as offered:
                    if isinstance(offered, Present):
                        self.answer = offered
                        return
                    self.offset = offered.offset
                    self.offered.set()
                    await self._begin.wait()
                    if self._checking:
                        self.answer = await offered.check_arrived()
                        return
                    assert self._source is not None
                    self.answer = await offered.send(self._source, self._progress)
        except SessionError as error:
            self.answer = error
        finally:
            self.offered.set()
            self.ended.set()

    def send(self, source: Source, progress: Progress) -> None:
        """Send the content to the node. Call this once, if the node requested an offset."""
        self._source = source
        self._progress = progress
        self._begin.set()

    def check_arrived(self) -> None:
        """Ask the node whether the content has reached it some other way. Call this once, instead of `send`."""
        self._checking = True
        self._begin.set()

    def give_up(self, reason: SessionError) -> None:
        """Cancel the attempt, unless it has ended."""
        if self.answer is None:
            self.answer = reason
            self._scope.cancel()


class ClusterUpload(Upload):
    """All nodes that are waiting for the content."""

    def __init__(
        self, failing: str, attempts: Sequence[tuple[Attempt, int]], conclude: Callable[[], Awaitable[Stored]]
    ) -> None:
        """`attempts` is not empty and includes the offsets that the nodes requested.

        `conclude` combines the answers of all nodes and records the outcome. `failing` begins the error message that
        lists all reasons.
        """
        self._failing = failing
        self.offset = min(offset for _, offset in attempts)
        self._attempts = attempts
        self._conclude = conclude

    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        """See Upload. Raises SessionError also if every node failed before the end of a stream."""
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

    async def check_arrived(self) -> Stored:
        """See Upload. Every node checks for itself."""
        for attempt, _ in self._attempts:
            attempt.check_arrived()
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
                    # If it cannot be read for one node, it cannot be read for any.
                    tasks.cancel_scope.cancel()

            for attempt, _ in self._attempts:
                tasks.start_soon(send, attempt)
        for attempt, _ in self._attempts:
            if isinstance(attempt.answer, SourceError):
                raise attempt.answer
        return True

    async def _send_stream(self, source: Source, pace: SlowestProgress) -> bool:
        """Send the stream; return whether the source was read to its end."""
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
                        attempt.give_up(Refused(f"it claims to have {offset} bytes, but the content has {end}"))
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
    """Upload to each node independently. Return each answer, and the source's error that ended it for all, if any."""
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
