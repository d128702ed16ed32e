"""One download from whichever nodes can give it.

Begins with the first node that has the content. When that node fails on the way, the next one goes on at the same byte,
unless only the whole of one node's content can be relied on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, suppress

from cluster_remote.cluster.node import Node
from cluster_remote.cluster.routing import failure_of_all
from cluster_remote.p2p.errors import ConnectionLost, Refused, SessionError
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Download, Progress

__all__ = ["ClusterDownload", "Fetch"]

# Asks one node for the content from a byte on, and enters the download into the stack.
Fetch = Callable[[AsyncExitStack, Node, int], Awaitable[Download]]


class ClusterDownload(Download):
    """Call `begin` before all else, and `aclose` in the end, in the task that reads the chunks."""

    def __init__(
        self,
        doing: str,
        nodes: Iterable[Node],
        fetch: Fetch,
        offset: int,
        size: int | None,
        failed: Callable[[Node, SessionError], None],
        *,
        alike: bool = True,
    ) -> None:
        """`nodes` are asked in this order; `size` is that of the whole content where it is known, in bytes.

        `alike` says that what one node has is what another one has, or that the key's checksum shows it if not. Else
        (encrypted content; WORM, URL and other keys without a checksum) no other node goes on with a download: a file
        is begun anew, and a stream, of which a part has been passed on, breaks off.

        `failed` is told of a node that had begun to give the content and could not go on.
        """
        self._doing = doing
        self._nodes = deque(nodes)
        self._fetch = fetch
        self._failed = failed
        self._size = size
        self._alike = alike
        self._start = self._position = offset
        self._end = None if size is None else max(size, offset)
        self._failures: list[tuple[Node, SessionError]] = []
        self._node: Node | None = None
        self._givers: set[Node] = set()
        self._download: Download | None = None
        self._context = AsyncExitStack()

    async def begin(self) -> None:
        """Finds the node to begin with. Raises SessionError if there is none, with the reason of each."""
        await self._next()
        assert self._end is not None
        self.length = self._end - self._start

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        while self._left() > 0:
            assert self._download is not None
            try:
                async for chunk in self._download.chunks():
                    self._gave()
                    self._position += len(chunk)
                    yield chunk
                self._check_complete()
            except SessionError as error:
                await self._fail(error)

    async def save(self, descriptor: int, position: int, progress: Progress) -> None:
        # How far the file's positions are ahead of the content's.
        shift = position - self._position

        def moved(position: int) -> None:
            self._gave()
            self._position = position - shift
            progress(position)

        while self._left() > 0:
            assert self._download is not None
            try:
                await self._download.save(descriptor, self._position + shift, moved)
                self._check_complete()
            except SessionError as error:
                if not self._alike and self._position > self._start:
                    self._begin_anew()
                await self._fail(error)
                self.length = self._left() + self._position - self._start

    def _begin_anew(self) -> None:
        """Forget what the last node has given, and what it says the length is."""
        self._position = self._start
        self._end = None if self._size is None else max(self._size, self._start)

    def _left(self) -> int:
        assert self._end is not None
        return self._end - self._position

    def _gave(self) -> None:
        assert self._node is not None
        self._givers.add(self._node)

    @property
    def origin(self) -> UUID | None:
        """See Download. A gateway does not say which node behind it gave it."""
        # An empty content comes from the node that vouches for it.
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
        while True:
            assert self._download is not None
            try:
                return await self._download.valid()
            except SessionError as error:
                # All bytes are here; only the word of a node that vouches for the last of them is missing.
                await self._fail(error)

    async def aclose(self) -> None:
        """Gives up what has not been read, and leaves the node's session."""
        self._download = None
        # A node that does not hear any more that its content arrived takes nothing of that back.
        with suppress(SessionError):
            await self._context.aclose()

    async def _fail(self, error: SessionError) -> None:
        assert self._node is not None
        self._failures.append((self._node, error))
        self._failed(self._node, error)
        await self.aclose()
        if self._position > self._start and not self._alike:
            raise failure_of_all(self._doing, self._failures)
        await self._next()

    async def _next(self) -> None:
        while self._nodes:
            self._node = self._nodes.popleft()
            try:
                await self._ask(self._node)
            except SessionError as error:
                self._failures.append((self._node, error))
                await self.aclose()
            else:
                return
        raise failure_of_all(self._doing, self._failures)

    async def _ask(self, node: Node) -> None:
        download = await self._fetch(self._context, node, self._position)
        end = self._position + download.length
        if download.length == 0 and not await _vouched(download):
            raise Refused("does not have the content")
        if self._end is not None and end != self._end:
            raise Refused(f"has {end} of the content's {self._end} bytes")
        self._end = end
        self._download = download


async def _vouched(download: Download) -> bool:
    """Whether a node that announces nothing has at least that: a key it does not have looks the same until then."""
    async for _ in download.chunks():
        pass
    return await download.valid()
