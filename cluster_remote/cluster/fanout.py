"""Distribute an upload whose content can be read only once.

Each node needs the content from its own offset. The content is read once, from the lowest offset; each node takes its
part from its own buffer, at its own pace. A full buffer pauses the reading, so the slowest node sets the pace; a
node that makes no progress is dropped by its own session, after its own timeout.

Content that can be read repeatedly (a file) needs none of this: each node reads it independently.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager

import anyio

from cluster_remote.p2p.errors import BeyondTheEnd, SourceError
from cluster_remote.p2p.session import Progress, Source, SourceReading
from cluster_remote.p2p.stream import LARGE_CHUNK

__all__ = ["BUFFER", "Share", "SlowestProgress", "distribute", "pieces", "wanted"]

# Maximum bytes that wait for one node. Data for several nodes is in memory only once.
BUFFER = LARGE_CHUNK


def wanted(position: int, length: int, offset: int) -> slice:
    """Return which part of the bytes [position, position + length) a node needs that has `offset` bytes."""
    return slice(min(max(offset - position, 0), length), length)


def pieces(chunk: bytes | memoryview, most: int = LARGE_CHUNK) -> Iterator[memoryview]:
    """Split a chunk into parts of at most `most` bytes that stay valid when the next chunk is read.

    Only writable buffers are reused for reading, and have to be copied.
    """
    kept = memoryview(chunk)
    if not kept.readonly:
        kept = memoryview(bytes(kept))
    for start in range(0, len(kept), most):
        yield kept[start : start + most]


class Share(Source):
    """One node's part of a stream of content: the bytes from `offset` on, through a buffer of `limit` bytes.

    One task writes (see `distribute`); another reads this source, once.
    """

    repeatable = False

    def __init__(self, offset: int, end: int, limit: int = BUFFER) -> None:
        """`offset` and `end` are positions in the content. Raises SourceError if nothing is between them."""
        if offset > end:
            raise SourceError(f"the content has {end} bytes, but the node claims to have {offset} already")
        self.offset = offset
        self.end = end
        self.closed = False
        self._limit = limit
        self._waiting: deque[memoryview] = deque()
        self._held = 0
        self._verdict: bool | None = None
        self._broken: str | None = None
        self._added = anyio.Event()
        self._has_room = anyio.Event()

    # The writing side

    async def add(self, piece: memoryview, position: int) -> None:
        """Add the part of `piece` that the node needs to the buffer, waiting for room while the node keeps reading."""
        # Compute the part again after each wait: the reader may have announced its offset only then.
        while not self.closed and (part := piece[wanted(position, len(piece), self.offset)]):
            if not self._held or self._held + len(part) <= self._limit:
                self._waiting.append(part)
                self._held += len(part)
                self._added.set()
                return
            self._has_room = anyio.Event()
            await self._has_room.wait()

    def finish(self, valid: bool) -> None:
        """Mark the end of the content; `valid` says whether the source vouches for it."""
        self._verdict = valid
        self._added.set()

    def break_off(self, reason: str) -> None:
        """Stop early. The reader gets a SourceError once the buffer is empty."""
        self._broken = reason
        self._added.set()

    # The reading side

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        if offset < self.offset:
            raise SourceError(f"the content is sent from byte {self.offset}, so it cannot be read from byte {offset}")
        self._skip_to(offset)
        try:
            yield _ShareReading(self)
        finally:
            self.close()

    def close(self) -> None:
        """Stop reading: later data is dropped."""
        self.closed = True
        self._waiting.clear()
        self._held = 0
        self._has_room.set()

    def _skip_to(self, offset: int) -> None:
        if offset > self.end:
            raise BeyondTheEnd(f"the content has {self.end} bytes, so it cannot be read from byte {offset}")
        while self._waiting and self.offset < offset:
            part = self._waiting.popleft()
            kept = part[wanted(self.offset, len(part), offset)]
            self._held -= len(part) - len(kept)
            self.offset += len(part) - len(kept)
            if kept:
                self._waiting.appendleft(kept)
        self.offset = offset
        self._has_room.set()

    async def _take(self) -> memoryview:
        while not self._waiting:
            self._check()
            if self._verdict is not None:
                raise SourceError("the content ended early")
            await self._wait()
        part = self._waiting.popleft()
        self._held -= len(part)
        self._has_room.set()
        return part

    async def _validity(self) -> bool:
        while self._verdict is None:
            self._check()
            await self._wait()
        return self._verdict

    async def _wait(self) -> None:
        self._added = anyio.Event()
        await self._added.wait()

    def _check(self) -> None:
        if self._broken is not None:
            raise SourceError(self._broken)


class _ShareReading(SourceReading):
    def __init__(self, share: Share) -> None:
        self._share = share
        self.length = share.end - share.offset

    async def chunks(self) -> AsyncIterator[memoryview]:
        left = self.length
        while left:
            part = await self._share._take()
            left -= len(part)
            yield part

    async def valid(self) -> bool:
        return await self._share._validity()


async def distribute(reading: SourceReading, start: int, shares: Sequence[Share]) -> bool:
    """Read content once, from byte `start`, and add to each share its part.

    Returns whether the content was read to its end; False if no reader is left. If reading fails, breaks off the shares
    and raises the source's error.
    """
    position = start
    try:
        async for chunk in reading.large_chunks():
            for piece in pieces(chunk):
                for share in shares:
                    await share.add(piece, position)
                position += len(piece)
            if position < start + reading.length and all(share.closed for share in shares):
                return False
        if position != start + reading.length:
            raise SourceError(f"the content has {position - start} bytes instead of the {reading.length} announced")
        valid = await reading.valid()
    except BaseException as error:
        for share in shares:
            share.break_off(str(error) or "the upload was aborted")
        raise
    for share in shares:
        share.finish(valid)
    return True


class SlowestProgress:
    """Combine the progress of many uploads into one: the position of the slowest still running. Never goes back."""

    def __init__(self, report: Progress | None) -> None:
        self._report = report
        self._positions: dict[str, int] = {}
        self._reported = -1

    def begin(self, positions: Iterable[tuple[str, int]]) -> None:
        """Add uploads by name, with the positions they start from."""
        self._positions.update(positions)

    def of(self, name: str) -> Progress:
        """Return the progress callback of one upload."""

        def report(position: int) -> None:
            if name in self._positions:
                self._positions[name] = position
                self._report_slowest()

        return report

    def drop(self, name: str) -> None:
        """Ignore an upload from now on, because it failed."""
        if self._positions.pop(name, None) is not None:
            self._report_slowest()

    def _report_slowest(self) -> None:
        if self._report is None or not self._positions:
            return
        slowest = min(self._positions.values())
        if slowest > self._reported:
            self._reported = slowest
            self._report(slowest)
