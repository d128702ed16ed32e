"""One download from whichever nodes can give the content.

Starts with the first node that has it. If that fails on the way, the next node resumes at the same byte, unless only
the whole of one node's copy can be trusted. While a node stays silent, the next ones are asked too.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from cluster_remote.cluster.node import Node
from cluster_remote.cluster.reachability import Traffic
from cluster_remote.cluster.routing import failure_of_all
from cluster_remote.cluster.spread import Spread, slow_rate
from cluster_remote.cluster.stretches import Plan
from cluster_remote.p2p.checksum import Checksum
from cluster_remote.p2p.errors import ConnectionLost, Damaged, Refused, SessionError
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Download, Progress, write_at

__all__ = ["ClusterDownload", "Fetch", "Helpers"]

# Asks one node for the content from a byte on.
Fetch = Callable[[Node, int], AbstractAsyncContextManager[Download]]


@dataclass(frozen=True)
class Helpers:
    """The nodes that may send a content at the same time, how to ask each, and which are in use.

    `checksum` starts a new one of the key's kind, if that can be computed here.
    """

    nodes: Sequence[Node]
    fetch: Fetch
    traffic: Traffic
    checksum: Callable[[], Checksum | None]


class _Giver:
    """The download from one node, in its own task, since each context must stay in one task."""

    def __init__(self, node: Node, position: int, answered: Callable[[], None]) -> None:
        self.node = node
        self.position = position
        self.download: Download | None = None
        self.error: Exception | None = None
        self._answered = answered
        self._wanted = anyio.CancelScope()
        self._left = anyio.Event()
        self._ended = anyio.Event()

    @property
    def has_answered(self) -> bool:
        return self.download is not None or self.error is not None

    async def run(self, fetch: Fetch, earlier: _Giver | None) -> None:
        """Run the download. `earlier` is an abandoned one from the same node: a session takes one request at a time."""
        try:
            with self._wanted:
                if earlier is not None:
                    await earlier._ended.wait()
                async with fetch(self.node, self.position) as download:
                    if download.length == 0 and not await _vouched(download):
                        raise Refused("does not have the content")
                    self.download = download
                    self._answered()
                    await self._left.wait()
        except Exception as error:
            # The content has arrived, even if the node no longer hears our confirmation.
            if self.download is None:
                self.error = error
            elif not isinstance(error, SessionError):
                raise
        finally:
            self._ended.set()
            self._answered()

    async def leave(self) -> None:
        """Finish an answered exchange, and release the node's session."""
        self._left.set()
        await self._ended.wait()

    def give_up(self) -> None:
        """Stop waiting for the node."""
        self._wanted.cancel()


class ClusterDownload(Download):
    """Call `begin` first, and `aclose` at the end, in the task that reads the chunks."""

    def __init__(
        self,
        doing: str,
        nodes: Iterable[Node],
        fetch: Fetch,
        offset: int,
        size: int | None,
        failed: Callable[[Node, SessionError], None],
        silent: Callable[[Node], None],
        *,
        tasks: TaskGroup,
        head_start: Callable[[Node], float],
        alike: bool = True,
        helpers: Helpers | None = None,
    ) -> None:
        """`nodes` are asked in this order; `size` is that of the whole content in bytes, if known.

        `alike` says that all copies are identical, or that the key's checksum shows if not. Otherwise (encrypted
        content; WORM, URL and other keys without a checksum) no other node resumes a download: a file is started again,
        and a stream, part of which has been passed on, fails.

        `failed` is called with a node that failed after it had started to send; `silent` with one that did not answer
        within its `head_start`, in seconds, after which the next one is asked as well. `tasks` runs the tasks that ask
        the nodes. `helpers` are those that several may be taken from at once, see `may_spread`.
        """
        self._doing = doing
        self._nodes = deque(nodes)
        self._fetch = fetch
        self._failed = failed
        self._silent = silent
        self._tasks = tasks
        self._head_start = head_start
        self._size = size
        self._alike = alike
        self._helpers = helpers
        self._directory: bytes | None = None
        self._verdict: bool | None = None
        self._mixed: Spread | None = None
        self._start = self._position = offset
        self._end = None if size is None else max(size, offset)
        self._failures: list[tuple[Node, SessionError]] = []
        self._node: Node | None = None
        self._giver: _Giver | None = None
        self._givers: set[Node] = set()
        self._given_up: dict[Node, _Giver] = {}
        self._news = anyio.Event()

    async def begin(self) -> None:
        """Find the node to start with. Raises SessionError with each node's reason if there is none."""
        await self._next()
        assert self._end is not None
        self.length = self._end - self._start

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        while self._left() > 0:
            download = self._download()
            try:
                async for chunk in download.chunks():
                    self._gave()
                    self._position += len(chunk)
                    yield chunk
                self._check_complete()
            except SessionError as error:
                await self._fail(error)

    async def save(self, descriptor: int, position: int, progress: Progress) -> None:
        # How far positions in the file are ahead of those in the content.
        shift = position - self._position

        def moved(position: int) -> None:
            self._gave()
            self._position = position - shift
            progress(position)

        while self._left() > 0:
            download = self._download()
            try:
                if shift or not await self._spread(download, descriptor, progress, moved):
                    await download.save(descriptor, self._position + shift, moved)
                    self._check_complete()
            except SessionError as error:
                if not self._alike and self._position > self._start:
                    self._begin_anew()
                await self._fail(error)
                self.length = self._left() + self._position - self._start
            if self._giver is None and self._left() > 0:
                await self._next()
        if self._mixed is not None and not await self._mixed.is_right(self._position):
            os.ftruncate(descriptor, self._start)
            givers = ", ".join(sorted(map(str, self._givers)))
            raise Damaged(f"{self._doing}: what came from {givers} at the same time is damaged")

    def may_spread(self, directory: bytes) -> None:
        self._directory = directory

    async def _spread(self, download: Download, descriptor: int, progress: Progress, moved: Progress) -> bool:
        """Save the first part from this node; if it is slow, have others help and return True.

        Then everything is saved, unless all nodes failed.
        """
        giver, helpers, directory, nodes = self._giver, self._helpers, self._directory, self._may_help()
        if giver is None or helpers is None or directory is None or len(nodes) < 2:
            return False
        checksum = helpers.checksum()
        if checksum is None:
            return False
        self._directory = None

        def write(data: bytes | memoryview) -> None:
            write_at(descriptor, data, self._position)
            moved(self._position + len(data))

        chunks = download.chunks()
        rate = await slow_rate(chunks, self._left(), write)
        aside = None if rate is None else _unlinked(directory)
        if rate is None or aside is None:
            return False
        assert self._end is not None
        plan = Plan[Node](self._position, self._end)
        spread = Spread(plan, nodes, helpers.fetch, helpers.traffic, rate, descriptor, checksum, progress)
        self._mixed = spread
        try:
            await spread.run(download, chunks, self.aclose, aside)
        finally:
            os.close(aside)
            self._position = plan.frontier
        self._givers |= spread.givers
        for node, error in spread.failures:
            self._failures.append((node, error))
            self._failed(node, error)
        failed = {node for node, _ in spread.failures}
        self._nodes = deque(node for node in (giver.node, *self._nodes) if node not in failed)
        # A node that was cut off does not vouch for anything; the checksum does.
        self._verdict = spread.verdict is not False
        return True

    def _may_help(self) -> list[Node]:
        """Return the sending node, then those that may help it: they cost no more."""
        if self._helpers is None or self._giver is None or self._giver.node not in self._helpers.nodes:
            return []
        first = self._giver.node
        waiting = [node for node in self._nodes if node in self._helpers.nodes and node not in self._given_up]
        return [first, *(node for node in waiting if node.cost <= first.cost)]

    def _begin_anew(self) -> None:
        """Discard what the last node sent, and the length it announced."""
        self._position = self._start
        self._givers.clear()
        self._end = None if self._size is None else max(self._size, self._start)

    def _left(self) -> int:
        assert self._end is not None
        return self._end - self._position

    def _gave(self) -> None:
        assert self._giver is not None
        self._givers.add(self._giver.node)

    def _download(self) -> Download:
        assert self._giver is not None
        assert self._giver.download is not None
        return self._giver.download

    @property
    def origin(self) -> UUID | None:
        """See Download. A gateway does not say which node behind it sent the content."""
        # Empty content comes from the node that vouches for it.
        givers = {node.uuid for node in self._givers or [self._node] if node is not None}
        origin = givers.pop()
        return None if givers or origin.is_cluster else origin

    def _check_complete(self) -> None:
        assert self._end is not None
        if self._position < self._end:
            raise ConnectionLost(f"it sent only {self._position} of {self._end} bytes")

    async def valid(self) -> bool:
        if self._end is None or self._position < self._end:
            raise RuntimeError("the content has not been read to its end")
        if self._giver is None and self._verdict is not None:
            return self._verdict
        while True:
            download = self._download()
            try:
                return await download.valid()
            except SessionError as error:
                # All bytes are here; only a node's confirmation of the last ones is missing.
                await self._fail(error)

    async def aclose(self) -> None:
        """Discard the unread rest, and release the node's session."""
        giver, self._giver = self._giver, None
        if giver is not None:
            await giver.leave()

    async def _fail(self, error: SessionError) -> None:
        assert self._giver is not None
        self._failures.append((self._giver.node, error))
        self._failed(self._giver.node, error)
        await self.aclose()
        if self._position > self._start and not self._alike:
            raise failure_of_all(self._doing, self._failures)
        await self._next()

    async def _next(self) -> None:
        """Find the first node that sends the content; ask the next when one fails or stays silent."""
        asked: list[_Giver] = []
        try:
            while asked or self._nodes:
                seconds = math.inf
                if self._nodes:
                    asked.append(self._ask(self._nodes.popleft()))
                    if self._nodes:
                        seconds = self._head_start(asked[-1].node)
                giver = await self._answered(asked, seconds)
                if giver is None:
                    self._silent(asked[-1].node)
                    continue
                asked.remove(giver)
                try:
                    self._accept(giver)
                except SessionError as error:
                    self._failures.append((giver.node, error))
                    await giver.leave()
                else:
                    return
        finally:
            for giver in asked:
                giver.give_up()
                # It can still be asked if the sending node fails.
                self._given_up[giver.node] = giver
                self._nodes.append(giver.node)
        raise failure_of_all(self._doing, self._failures)

    def _ask(self, node: Node) -> _Giver:
        giver = _Giver(node, self._position, lambda: self._news.set())
        self._tasks.start_soon(giver.run, self._fetch, self._given_up.pop(node, None))
        return giver

    async def _answered(self, asked: list[_Giver], seconds: float) -> _Giver | None:
        """Return a node that has answered; None if none does within this many seconds."""
        with anyio.move_on_after(seconds):
            while True:
                for giver in asked:
                    if giver.has_answered:
                        return giver
                self._news = anyio.Event()
                await self._news.wait()
        return None

    def _accept(self, giver: _Giver) -> None:
        """Continue with this node. Raises SessionError if it does not send what is needed."""
        if giver.error is not None:
            raise giver.error
        assert giver.download is not None
        end = self._position + giver.download.length
        if self._end is not None and end != self._end:
            raise Refused(f"has {end} of the content's {self._end} bytes")
        self._end = end
        self._giver, self._node = giver, giver.node


def _unlinked(directory: bytes) -> int | None:
    """Return the descriptor of an unlinked temporary file in a directory; None if it cannot be created."""
    # Importing it takes a while.
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            return os.dup(file.fileno())
    except OSError:
        return None


async def _vouched(download: Download) -> bool:
    """Return whether a node that announces 0 bytes really has the content: a missing key looks the same until then."""
    async for _ in download.chunks():
        pass
    return await download.valid()
