"""Download content from the nodes that have it.

Starts with the first node that has it. If that fails midway, the next node resumes at the same byte, unless copies may
differ and only a complete one can be trusted. While a node stays silent, the next ones are asked too.
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

from cluster_remote.annex.disk import free_bytes
from cluster_remote.cluster.node import Node
from cluster_remote.cluster.reachability import Traffic
from cluster_remote.cluster.routing import failure_of_all
from cluster_remote.cluster.spread import Spread, slow_rate
from cluster_remote.cluster.stretches import AHEAD, Plan
from cluster_remote.p2p.checksum import Checksum
from cluster_remote.p2p.errors import ConnectionLost, Damaged, Refused, SessionError
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Download, Progress, write_at

__all__ = ["ClusterDownload", "Fetch", "Helpers"]

# Requests the content from one node, starting at a byte.
Fetch = Callable[[Node, int], AbstractAsyncContextManager[Download]]


@dataclass(frozen=True)
class Helpers:
    """The nodes that may send parts of the content at the same time, how to ask each, and which are in use.

    `checksum` starts a new checksum for the key; it returns None if the key's hash is not supported here.
    """

    nodes: Sequence[Node]
    fetch: Fetch
    traffic: Traffic
    checksum: Callable[[], Checksum | None]


class _Sender:
    """The download from one node, in its own task, since each context must stay in one task."""

    def __init__(self, node: Node, position: int, answered: Callable[[], None]) -> None:
        self.node = node
        self.position = position
        self.download: Download | None = None
        self.error: Exception | None = None
        self._answered = answered
        self._scope = anyio.CancelScope()
        self._finish = anyio.Event()
        self._ended = anyio.Event()

    @property
    def has_answered(self) -> bool:
        return self.download is not None or self.error is not None

    async def run(self, fetch: Fetch, earlier: _Sender | None) -> None:
        """Run the download. `earlier` is an abandoned one from the same node: a session takes one request at a time."""
        try:
            with self._scope:
                if earlier is not None:
                    await earlier._ended.wait()
                async with fetch(self.node, self.position) as download:
                    if download.length == 0 and not await _is_empty(download):
                        raise Refused("does not have the content")
                    self.download = download
                    self._answered()
                    await self._finish.wait()
        except Exception as error:
            # The content has arrived, even if our confirmation no longer reaches the node.
            if self.download is None:
                self.error = error
            elif not isinstance(error, SessionError):
                raise
        finally:
            self._ended.set()
            self._answered()

    async def finish(self) -> None:
        """Finish a request that the node has answered, and release its session."""
        self._finish.set()
        await self._ended.wait()

    def give_up(self) -> None:
        """Stop waiting for the node."""
        self._scope.cancel()


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

        `alike` says that all copies are identical, or that the key's checksum shows if they are not. Otherwise
        (encrypted content; WORM, URL and other keys without a checksum) no other node resumes a download: a file starts
        over, and a stream, part of which has already been passed on, fails.

        `failed` is called with a node that failed after it had started to send; `silent` with one that did not answer
        within its `head_start`, in seconds, after which the next one is asked as well. `tasks` runs the requests to the
        nodes. `helpers` are the nodes that may send parts at the same time, see `may_spread`.
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
        self._sender: _Sender | None = None
        self._senders: set[Node] = set()
        self._abandoned: dict[Node, _Sender] = {}
        self._new_answer = anyio.Event()

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
                    self._note_sender()
                    self._position += len(chunk)
                    yield chunk
                self._check_complete()
            except SessionError as error:
                await self._fail(error)

    async def save(self, descriptor: int, position: int, progress: Progress) -> None:
        # Positions in the file minus those in the content.
        shift = position - self._position

        def moved(position: int) -> None:
            self._note_sender()
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
                    self._start_over()
                await self._fail(error)
                self.length = self._left() + self._position - self._start
            if self._sender is None and self._left() > 0:
                await self._next()
        if self._mixed is not None:
            self.verified = await self._mixed.matches(self._position)
            if not self.verified:
                os.ftruncate(descriptor, self._start)
                senders = ", ".join(sorted(map(str, self._senders)))
                raise Damaged(f"{self._doing}: checksum mismatch in the content fetched in parts from {senders}")

    def may_spread(self, directory: bytes) -> None:
        self._directory = directory

    async def _spread(self, download: Download, descriptor: int, progress: Progress, moved: Progress) -> bool:
        """Save the first part from the sending node; if it is slow, have others help, and return whether they did.

        After that, everything is saved, unless all nodes failed.
        """
        sender, helpers, directory, nodes = self._sender, self._helpers, self._directory, self._may_help()
        if sender is None or helpers is None or directory is None or len(nodes) < 2:
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
        aside = None if rate is None or not self._has_room(descriptor) else _temporary_file(directory)
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
        self._senders |= spread.senders
        for node, error in spread.failures:
            self._failures.append((node, error))
            self._failed(node, error)
        failed = {node for node, _ in spread.failures}
        self._nodes = deque(node for node in (sender.node, *self._nodes) if node not in failed)
        # A node that was cut off cannot say whether the content is valid; the checksum can.
        self._verdict = spread.verdict is not False
        return True

    def _has_room(self, descriptor: int) -> bool:
        """Return whether the disk has room for the rest of the file and for early data."""
        room = free_bytes(os.fstatvfs(descriptor))
        return room is None or room >= self._left() + min(self._left(), AHEAD)

    def _may_help(self) -> list[Node]:
        """Return the sending node, then those that may help it because they cost no more."""
        if self._helpers is None or self._sender is None or self._sender.node not in self._helpers.nodes:
            return []
        first = self._sender.node
        waiting = [node for node in self._nodes if node in self._helpers.nodes and node not in self._abandoned]
        return [first, *(node for node in waiting if node.cost <= first.cost)]

    def _start_over(self) -> None:
        """Discard what the last node sent, and the length it announced."""
        self._position = self._start
        self._senders.clear()
        self._end = None if self._size is None else max(self._size, self._start)

    def _left(self) -> int:
        assert self._end is not None
        return self._end - self._position

    def _note_sender(self) -> None:
        assert self._sender is not None
        self._senders.add(self._sender.node)

    def _download(self) -> Download:
        assert self._sender is not None
        assert self._sender.download is not None
        return self._sender.download

    @property
    def origin(self) -> UUID | None:
        """See Download. A gateway does not say which node behind it sent the content."""
        # For empty content, this is the node that confirmed it.
        senders = {node.uuid for node in self._senders or [self._node] if node is not None}
        origin = senders.pop()
        return None if senders or origin.is_cluster else origin

    def _check_complete(self) -> None:
        assert self._end is not None
        if self._position < self._end:
            raise ConnectionLost(f"it sent only {self._position} of {self._end} bytes")

    async def valid(self) -> bool:
        if self._end is None or self._position < self._end:
            raise RuntimeError("the content has not been read to its end")
        if self._sender is None and self._verdict is not None:
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
        sender, self._sender = self._sender, None
        if sender is not None:
            await sender.finish()

    async def _fail(self, error: SessionError) -> None:
        assert self._sender is not None
        self._failures.append((self._sender.node, error))
        self._failed(self._sender.node, error)
        await self.aclose()
        if self._position > self._start and not self._alike:
            raise failure_of_all(self._doing, self._failures)
        await self._next()

    async def _next(self) -> None:
        """Find the first node that sends the content; ask the next when one fails or stays silent."""
        asked: list[_Sender] = []
        try:
            while asked or self._nodes:
                seconds = math.inf
                if self._nodes:
                    asked.append(self._ask(self._nodes.popleft()))
                    if self._nodes:
                        seconds = self._head_start(asked[-1].node)
                sender = await self._first_answer(asked, seconds)
                if sender is None:
                    self._silent(asked[-1].node)
                    continue
                asked.remove(sender)
                try:
                    self._accept(sender)
                except SessionError as error:
                    self._failures.append((sender.node, error))
                    await sender.finish()
                else:
                    return
        finally:
            for sender in asked:
                sender.give_up()
                # It can still be asked if the sending node fails.
                self._abandoned[sender.node] = sender
                self._nodes.append(sender.node)
        raise failure_of_all(self._doing, self._failures)

    def _ask(self, node: Node) -> _Sender:
        sender = _Sender(node, self._position, lambda: self._new_answer.set())
        self._tasks.start_soon(sender.run, self._fetch, self._abandoned.pop(node, None))
        return sender

    async def _first_answer(self, asked: list[_Sender], seconds: float) -> _Sender | None:
        """Return the first of the asked nodes to answer; None if none does within `seconds`."""
        with anyio.move_on_after(seconds):
            while True:
                for sender in asked:
                    if sender.has_answered:
                        return sender
                self._new_answer = anyio.Event()
                await self._new_answer.wait()
        return None

    def _accept(self, sender: _Sender) -> None:
        """Continue with this node. Raises SessionError if it does not send the missing bytes."""
        if sender.error is not None:
            raise sender.error
        assert sender.download is not None
        end = self._position + sender.download.length
        if self._end is not None and end != self._end:
            raise Refused(f"has {end} of the content's {self._end} bytes")
        self._end = end
        self._sender, self._node = sender, sender.node


def _temporary_file(directory: bytes) -> int | None:
    """Return the descriptor of a new unlinked file in a directory; None if it cannot be created."""
    # Not the tempfile module: importing it takes longer than a small download.
    path = os.path.join(directory, b".cluster-remote-" + os.urandom(8).hex().encode())  # noqa: PTH118 -- bytes
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        os.unlink(path)  # noqa: PTH108 -- bytes
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


async def _is_empty(download: Download) -> bool:
    """Return whether a node that announces 0 bytes has the content; for a missing key, it announces the same."""
    async for _ in download.chunks():
        pass
    return await download.valid()
