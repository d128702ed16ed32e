"""Connections and sources in memory."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import anyio

from cluster_remote.p2p.client import Transport
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.messages import AuthSuccess, Version, serialise
from cluster_remote.p2p.session import Source, SourceReading
from cluster_remote.p2p.stream import Connection

SERVER = UUID("5e55e55e-0000-4000-8000-000000000001")
CLIENT = UUID("c11e0000-0000-4000-8000-000000000002")
OPENING = serialise(AuthSuccess(SERVER)) + serialise(Version(4))


class MemoryConnection(Connection):
    """Plays incoming bytes piece by piece: bytes arrive, a number is a pause of so many seconds; then comes the end of
    the stream, or, with `stalls`, nothing any more.

    `writes` are the writes as they were made; `accepts` is the most bytes that one of them takes, and after
    `takes` bytes in all the peer reads no more.
    """

    def __init__(
        self,
        incoming: Iterable[bytes | float] = (),
        *,
        stalls: bool = False,
        accepts: int | None = None,
        takes: int | None = None,
    ) -> None:
        self.incoming = deque(incoming)
        self.writes: list[bytes] = []
        self.closed = 0
        self._stalls = stalls
        self._accepts = accepts
        self._takes = takes

    @property
    def written(self) -> bytes:
        return b"".join(self.writes)

    async def receive(self, max_bytes: int) -> bytes:
        await anyio.lowlevel.checkpoint()
        while self.incoming:
            piece = self.incoming.popleft()
            if not isinstance(piece, bytes):
                await anyio.sleep(piece)
            elif piece:
                if rest := piece[max_bytes:]:
                    self.incoming.appendleft(rest)
                return piece[:max_bytes]
        if self._stalls:
            await anyio.sleep_forever()
        return b""

    async def send_some(self, data: memoryview) -> int:
        await anyio.lowlevel.checkpoint()
        size = len(data) if self._accepts is None else min(len(data), self._accepts)
        if self._takes is not None:
            size = min(size, self._takes - len(self.written))
            if size == 0:
                await anyio.sleep_forever()
        self.writes.append(bytes(data[:size]))
        return size

    def ended(self) -> bool:
        return not self.incoming and not self._stalls

    async def aclose(self, grace: float) -> None:
        self.closed += 1


class InMemory(Transport):
    """A transport to prepared connections."""

    name = "memory"

    def __init__(self, *connections: MemoryConnection) -> None:
        self.left = list(connections)

    async def connect(self) -> Connection:
        return self.left.pop(0)


class Pieces(Source):
    """A source that yields these pieces, whatever length it announces; then it raises, or says whether it is valid.

    A number among the pieces is a pause of so many seconds. `watch` is called before each piece is handed out.
    """

    repeatable = False

    def __init__(
        self,
        *pieces: bytes | float,
        length: int | None = None,
        valid: bool = True,
        raises: BaseException | None = None,
        watch: Callable[[], None] | None = None,
    ) -> None:
        self.pieces = pieces
        self.length = sum(len(piece) for piece in pieces if isinstance(piece, bytes)) if length is None else length
        self.is_valid = valid
        self.raises = raises
        self.watch = watch
        self.offsets: list[int] = []

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        self.offsets.append(offset)
        yield _Reading(self)


class _Reading(SourceReading):
    def __init__(self, source: Pieces) -> None:
        self.length = source.length
        self._source = source

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self._source.pieces:
            if not isinstance(piece, bytes):
                await anyio.sleep(piece)
                continue
            if self._source.watch is not None:
                self._source.watch()
            yield piece
        if self._source.raises is not None:
            raise self._source.raises

    async def valid(self) -> bool:
        return self._source.is_valid


class Content:
    """Random bytes, and their key."""

    def __init__(self, size: int) -> None:
        self.bytes = os.urandom(size)
        self.key = Key(f"SHA256-s{size}--{hashlib.sha256(self.bytes).hexdigest()}")

    def source(self, offset: int = 0) -> Pieces:
        step = 65536
        return Pieces(*(self.bytes[at : at + step] for at in range(offset, len(self.bytes), step)))
