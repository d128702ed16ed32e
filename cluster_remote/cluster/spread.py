"""Download one content from several nodes at once, if each has a slow connection.

The file only grows at its end, as with a single node: git-annex hashes it meanwhile, and an interrupted download leaves
the beginning of the content. Data from further on waits in an unlinked temporary file of limited size.

The result is verified by the key's checksum, since one node's damaged copy would spoil all of it. Nodes that serve
other downloads do not help.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from cluster_remote.cluster.node import Node
from cluster_remote.cluster.reachability import Traffic
from cluster_remote.cluster.stretches import AHEAD, Plan, Stretch
from cluster_remote.cluster.upload import task_group
from cluster_remote.p2p.checksum import Checksum
from cluster_remote.p2p.errors import Refused, SessionError
from cluster_remote.p2p.session import Download, Progress, write_at

__all__ = ["Spread", "slow_rate"]

# A node is slow below this rate, in bytes per second, measured over these bytes or seconds, whichever comes first.
_SLOW, _MEASURED, _MEASURED_SECONDS = 30e6, 16 * 1024 * 1024, 0.25
# If one node alone would need at least this many more seconds, it pays to ask others too.
_WORTH_IT = 3.0
# Errors of a disk that has no room, or none for this user.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# The most nodes to use at once; seconds between checks of their progress; bytes to copy at once.
_MOST_NODES, _TICK, _PORTION = 8, 0.25, 1024 * 1024


async def slow_rate(
    chunks: AsyncIterator[bytes | memoryview], left: int, write: Callable[[bytes | memoryview], None]
) -> float | None:
    """Write the first of `left` bytes; return the rate in bytes per second if it is so low that others should help."""
    began, count = 0.0, 0
    async for chunk in chunks:
        write(chunk)
        left -= len(chunk)
        now = anyio.current_time()
        if not began:
            began = now
            continue
        count += len(chunk)
        seconds = now - began
        if count >= _MEASURED or seconds >= _MEASURED_SECONDS:
            rate = count / max(seconds, 1e-6)
            return rate if rate < _SLOW and left / rate > _WORTH_IT else None
    return None


@dataclass(eq=False)
class _Worker:
    """One node working on one stretch."""

    stretch: Stretch[Node]
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    receiving: bool = True


class Spread:
    """One content, from the first node and its helpers.

    Attributes:
        failures: the nodes that failed, and why.
        senders: the nodes that sent a part.
        verdict: whether the content is valid according to the node that sent the last byte; None if it did not say.
    """

    def __init__(
        self,
        plan: Plan[Node],
        nodes: Sequence[Node],
        fetch: Callable[[Node, int], AbstractAsyncContextManager[Download]],
        traffic: Traffic,
        rate: float,
        descriptor: int,
        checksum: Checksum,
        progress: Progress,
    ) -> None:
        """`nodes` are the first one, then possible helpers; `rate` is the first one's, in bytes per second.

        The content goes to the file `descriptor`, which is complete up to the plan's frontier. `checksum` is a new
        one for the key.
        """
        self.failures: list[tuple[Node, SessionError]] = []
        self.senders: set[Node] = set()
        self.verdict: bool | None = None
        self._plan = plan
        self._nodes = nodes[:_MOST_NODES]
        self._fetch = fetch
        self._traffic = traffic
        self._rates = dict.fromkeys(self._nodes, rate)
        self._descriptor = descriptor
        self._checksum = checksum
        self._checked = 0
        self._progress = progress
        self._received = plan.frontier
        self._workers: dict[Node, _Worker] = {}
        self._first_stretch: Stretch[Node] | None = None
        self._error: OSError | None = None
        self._wake = anyio.Event()

    async def run(
        self, download: Download, chunks: AsyncIterator[bytes | memoryview], leave: Callable[[], Awaitable[None]],
        aside: int,
    ) -> None:  # fmt: skip
        """Fetch until the file is complete, no node is left, or early data takes the room that the file needs.

        The first node is already sending the `chunks` of its `download`; `leave` ends that. Early data is kept in the
        file `aside`. Raises OSError if the file cannot be written for another reason.
        """
        async with task_group() as tasks:
            first = self._nodes[0]
            stretch = self._take(first)
            assert stretch is not None
            self._first_stretch = stretch
            worker = self._workers[first] = _Worker(stretch)
            tasks.start_soon(self._continue_first, worker, download, chunks, leave)
            while True:
                self._wake = anyio.Event()
                self._hand_out(tasks, aside)
                frontier, idle = self._plan.frontier, not self._workers
                try:
                    await self._lengthen_file(aside)
                except OSError as error:
                    self._error = error
                if self._error is not None:
                    if self._error.errno in _FULL:
                        break
                    raise self._error
                if self._plan.frontier >= self._plan.end or (idle and self._plan.frontier == frontier):
                    break
                with anyio.move_on_after(_TICK):
                    await self._wake.wait()

    def _take(self, node: Node) -> Stretch[Node] | None:
        total = sum(self._rates.values())
        return self._plan.take(node, self._rates[node], total, anyio.current_time())

    def _hand_out(self, tasks: TaskGroup, aside: int) -> None:
        for node in self._nodes:
            if node in self._workers or node not in self._rates or not self._traffic.is_free(node.name):
                continue
            stretch = self._take(node)
            if stretch is None:
                break
            worker = self._workers[node] = _Worker(stretch)
            tasks.start_soon(self._help, worker, aside)
        for worker in self._workers.values():
            if worker.receiving and not worker.stretch.left:
                # It was stuck, and others have taken over its whole stretch.
                self._rates.pop(worker.stretch.node, None)
                worker.scope.cancel()

    async def _continue_first(
        self, worker: _Worker, download: Download, chunks: AsyncIterator[bytes | memoryview],
        leave: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        def write(data: memoryview, position: int) -> None:
            write_at(self._descriptor, data, position)

        try:
            with worker.scope:
                await self._receive(worker, download, chunks, write)
        except SessionError as error:
            self._failed(worker, error)
        except OSError as error:
            self._error = error
        finally:
            with anyio.CancelScope(shield=True):
                await leave()
            self._ended(worker)

    async def _help(self, worker: _Worker, aside: int) -> None:
        node, start = worker.stretch.node, worker.stretch.start

        def write(data: memoryview, position: int) -> None:
            room = AHEAD - position % AHEAD
            write_at(aside, data[:room], position % AHEAD)
            write_at(aside, data[room:], 0)

        try:
            with worker.scope, self._traffic.helping(node.name, worker.scope.cancel):
                async with self._fetch(node, start) as download:
                    if start + download.length != self._plan.end:
                        raise Refused(f"has {start + download.length} of the content's {self._plan.end} bytes")
                    await self._receive(worker, download, download.chunks(), write)
        except SessionError as error:
            self._failed(worker, error)
        except OSError:
            # The disk has no room for early data, but perhaps for the file itself.
            self._rates.clear()
        finally:
            self._ended(worker)

    def _failed(self, worker: _Worker, error: SessionError) -> None:
        self.failures.append((worker.stretch.node, error))
        self._rates.pop(worker.stretch.node, None)

    def _ended(self, worker: _Worker) -> None:
        stretch = worker.stretch
        worker.receiving = False
        self._plan.give_back(stretch)
        rate = stretch.rate(anyio.current_time())
        if rate and stretch.node in self._rates:
            self._rates[stretch.node] = rate
        del self._workers[stretch.node]
        self._wake.set()

    async def _receive(
        self, worker: _Worker, download: Download, chunks: AsyncIterator[bytes | memoryview],
        write: Callable[[memoryview, int], None],
    ) -> None:  # fmt: skip
        stretch = worker.stretch
        async for chunk in chunks:
            data = memoryview(chunk)
            while data and stretch.left:
                part = data[: stretch.left]
                write(part, stretch.position)
                data = data[len(part) :]
                stretch.received(len(part), anyio.current_time())
                self.senders.add(stretch.node)
                self._received += len(part)
                self._progress(self._received)
                if not stretch.left:
                    self._plan.extend(stretch)
            if not stretch.left:
                break
        worker.receiving = False
        if stretch.position == self._plan.end:
            self.verdict = await download.valid()

    async def _lengthen_file(self, aside: int) -> None:
        """Append data that continues the file."""
        while (stretch := self._plan.first()) is not None:
            start, end = self._plan.frontier, stretch.position
            if stretch is not self._first_stretch:
                await anyio.to_thread.run_sync(self._copy, aside, start, end)
            self._plan.frontier = end
        await anyio.to_thread.run_sync(self._check)

    def _check(self) -> None:
        """Add new data in the file to the checksum."""
        while self._checked < self._plan.frontier:
            data = os.pread(self._descriptor, min(_PORTION, self._plan.frontier - self._checked), self._checked)
            if not data:
                raise OSError(errno.EIO, "the file was truncated")
            self._checksum.update(data)
            self._checked += len(data)

    async def matches(self, end: int) -> bool:
        """Return whether the content, now complete in the file up to byte `end`, matches its key."""
        self._plan.frontier = end
        await anyio.to_thread.run_sync(self._check)
        return self._checksum.matches()

    def _copy(self, aside: int, position: int, end: int) -> None:
        while position < end:
            offset = position % AHEAD
            data = os.pread(aside, min(_PORTION, end - position, AHEAD - offset), offset)
            write_at(self._descriptor, data, position)
            position += len(data)
