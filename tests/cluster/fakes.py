"""Sessions in memory that fail where told: at any request, at any byte."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID as StandardUUID

import anyio
import anyio.lowlevel

from cluster_remote.annex.errors import LocationLogError
from cluster_remote.cluster.node import Node
from cluster_remote.p2p.errors import ConnectionLost, Refused, SessionError, SourceError, TimedOut
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import (
    Download,
    Present,
    Progress,
    Removal,
    Session,
    Source,
    SourceReading,
    Stored,
    Upload,
)

CLUSTER = UUID("ac000000-0000-8000-8000-000000000000")
FILE = AssociatedFile("some/file")


def uuid(number: int) -> UUID:
    return UUID(str(StandardUUID(int=number + 1)))


def key_of(content: bytes, name: str = "content") -> Key:
    return Key(f"SHA256-s{len(content)}--{name}")


@dataclass
class Peer:
    """A repository, and how it misbehaves.

    Attributes:
        refuse: raised by every request before anything is done.
        break_after: the connection breaks when so many bytes of a content have gone through in one request.
        stall_after: the same, as a peer that makes no more progress within its deadline.
        silent: never answers an offer, a check, a removal or a question for the time.
        fails: says that it did not store or remove it.
        answer_lost: removes, and breaks off before it says so.
        seconds: of its clock; None where it speaks a version without.
        plus: what it adds in its -PLUS answers.
        verdict: its word at the end of a download.
        chunk: how many bytes of a download come at once.
        pace: seconds before each of these.
        stuck_after: a download that has come so far, by its position in the content, never goes on.
    """

    number: int
    contents: dict[Key, bytes] = field(default_factory=dict)
    partial: dict[Key, bytes] = field(default_factory=dict)
    refuse: SessionError | None = None
    break_after: int | None = None
    stall_after: int | None = None
    silent: bool = False
    fails: bool = False
    answer_lost: bool = False
    seconds: int | None = 1000
    plus: frozenset[UUID] = frozenset()
    verdict: bool = True
    verdict_lost: bool = False
    chunk: int = 3
    pace: float = 0.0
    stuck_after: int | None = None
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    received: list[bytes] = field(default_factory=list)
    removals_before: list[int | None] = field(default_factory=list)
    sessions: int = 0
    closed: int = 0
    under_way: int = 0

    @property
    def uuid(self) -> UUID:
        return uuid(self.number)

    def node(self, cost: float = 100.0, members: frozenset[UUID] = frozenset()) -> Node:
        return Node(
            uuid=CLUSTER if members else self.uuid,
            name=f"node{self.number}",
            description=f"disk {self.number} (shelf)",
            cost=cost,
            session=self.session,
            members=members,
        )

    def session(self) -> FakeSession:
        self.sessions += 1
        return FakeSession(self)

    async def enter(self, request: str) -> None:
        self.requests.append(request)
        await anyio.lowlevel.checkpoint()
        if self.silent:
            await anyio.sleep_forever()
        if self.refuse is not None:
            raise self.refuse

    def pass_bytes(self, position: int, count: int) -> int:
        """Return how many of the next `count` bytes still pass; raise the error once the limit is reached."""
        limit = min((n for n in (self.break_after, self.stall_after) if n is not None), default=None)
        if limit is None:
            return count
        if position >= limit and count:
            if self.stall_after == limit:
                raise TimedOut(f"{self.number}: no progress")
            raise ConnectionLost(f"{self.number}: broke off")
        return min(count, limit - position)


class FakeSession(Session):
    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self._busy = False

    @property
    def name(self) -> str:
        return f"fake {self.peer.number}"

    @property
    def version(self) -> int | None:
        return 4

    @asynccontextmanager
    async def _request(self, doing: str) -> AsyncIterator[None]:
        assert not self._busy, "a session takes one request at a time"
        self._busy = True
        self.peer.under_way += 1
        try:
            await self.peer.enter(doing)
            yield
        finally:
            self._busy = False
            self.peer.under_way -= 1

    async def open(self) -> UUID:
        return self.peer.uuid

    async def check_present(self, key: Key) -> bool:
        async with self._request("check"):
            return key in self.peer.contents

    @asynccontextmanager
    async def upload(self, key: Key, file: AssociatedFile) -> AsyncIterator[Present | Upload]:
        async with self._request("upload"):
            if key in self.peer.contents:
                yield Present(self.peer.plus)
            else:
                yield FakeUpload(self.peer, key)

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        async with self._request(f"download {offset}"):
            yield FakeDownload(self.peer, key, offset)

    async def remove(self, key: Key, before: int | None = None) -> Removal:
        async with self._request("remove"):
            self.peer.removals_before.append(before)
            if self.peer.fails:
                return Removal(False, self.peer.plus, ("it is locked",))
            self.peer.contents.pop(key, None)
            if self.peer.answer_lost:
                raise ConnectionLost("gone")
            return Removal(True, self.peer.plus)

    async def timestamp(self) -> int:
        async with self._request("timestamp"):
            if self.peer.seconds is None:
                raise Refused("the server speaks version 2 of the protocol; this needs version 3")
            return self.peer.seconds

    @asynccontextmanager
    async def lock(self, key: Key) -> AsyncIterator[bool]:
        async with self._request("lock"):
            yield key in self.peer.contents

    async def aclose(self) -> None:
        self.peer.closed += 1


class FakeUpload(Upload):
    def __init__(self, peer: Peer, key: Key) -> None:
        self.offset = len(peer.partial.get(key, b""))
        self._peer = peer
        self._key = key

    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        received = b""
        async with source.read(self.offset) as reading:
            try:
                async for chunk in reading.chunks():
                    passed = self._peer.pass_bytes(len(received), len(chunk))
                    received += chunk[:passed]
                    if passed < len(chunk):
                        self._peer.pass_bytes(len(received), len(chunk) - passed)
                    if progress is not None:
                        progress(self.offset + len(received))
                if len(received) != reading.length:
                    raise SourceError("it is not as long as it said")
                valid = await reading.valid()
            finally:
                self._peer.received.append(received)
        if self._peer.fails or not valid:
            return Stored(False, reasons=("did not store it",))
        self._peer.contents[self._key] = self._peer.partial.pop(self._key, b"") + received
        return Stored(True, self._peer.plus)

    async def check_arrived(self) -> Stored:
        return Stored(self._key in self._peer.contents, self._peer.plus)


class FakeDownload(Download):
    def __init__(self, peer: Peer, key: Key, offset: int) -> None:
        self._peer = peer
        self._offset = offset
        self._has_it = key in peer.contents
        self._bytes = peer.contents.get(key, b"")[offset:]
        self.length = len(self._bytes)
        self._position = 0

    async def chunks(self) -> AsyncIterator[memoryview]:
        while self._position < self.length:
            position = self._position
            passed = self._peer.pass_bytes(position, min(self._peer.chunk, self.length - position))
            if self._peer.stuck_after is not None and self._offset + position >= self._peer.stuck_after:
                await anyio.sleep_forever()
            memory = bytearray(self._bytes[position : position + passed])
            await anyio.sleep(self._peer.pace)
            self._position += passed
            yield memoryview(memory)
            memory[:] = bytes(len(memory))

    async def valid(self) -> bool:
        if self._peer.verdict_lost:
            raise ConnectionLost(f"{self._peer.number}: broke off before its verdict")
        return self._has_it and self._peer.verdict


class Log:
    """A location log in memory."""

    def __init__(self, known: dict[Key, Iterable[int]] | None = None) -> None:
        self.known = {key: frozenset(map(uuid, numbers)) for key, numbers in (known or {}).items()}
        self.recorded: list[tuple[str, Key, frozenset[UUID]]] = []
        self.broken = False
        self.before_recording: Callable[[], None] = lambda: None

    async def locations(self, key: Key) -> frozenset[UUID]:
        if self.broken:
            raise LocationLogError("the log cannot be read")
        return self.known.get(key, frozenset())

    def expect(self) -> None:
        """Do nothing: there is nothing to start."""

    async def record(self, key: Key, present: Collection[UUID] = (), absent: Collection[UUID] = ()) -> None:
        self.before_recording()
        await anyio.lowlevel.checkpoint()
        if self.broken:
            raise LocationLogError("the disk is full")
        for what, uuids in (("present", present), ("absent", absent)):
            if not uuids:
                continue
            # Each node may be recorded by itself; what counts is what it comes to.
            earlier = frozenset[UUID]()
            if self.recorded and self.recorded[-1][:2] == (what, key):
                earlier = self.recorded.pop()[2]
            self.recorded.append((what, key, earlier | frozenset(uuids)))
        self.known[key] = (self.known.get(key, frozenset()) | frozenset(present)) - frozenset(absent)


class Content(Source):
    """A content to upload, in chunks of given sizes, over and over; read once or any number of times.

    Raises SourceError after `break_after` bytes.
    """

    def __init__(
        self,
        content: bytes,
        *,
        repeatable: bool,
        chunks: Sequence[int] = (4,),
        valid: bool = True,
        break_after: int | None = None,
    ) -> None:
        self.repeatable = repeatable
        self.content = content
        self.reads = 0
        self._chunks = chunks
        self._valid = valid
        self._break_after = break_after

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        self.reads += 1
        assert self.repeatable or self.reads == 1, "a stream can only be read once"
        yield _ContentReading(self.content, offset, self._chunks, self._valid, self._break_after)


class _ContentReading(SourceReading):
    def __init__(
        self, content: bytes, offset: int, chunks: Sequence[int], valid: bool, break_after: int | None
    ) -> None:
        self.length = len(content) - offset
        if self.length < 0:
            raise SourceError("there is less content than the node has")
        self._content = content
        self._position = offset
        self._chunks = chunks
        self._valid = valid
        self._break_after = break_after

    async def chunks(self) -> AsyncIterator[memoryview]:
        number = 0
        while self._position < len(self._content):
            if self._break_after is not None and self._position >= self._break_after:
                raise SourceError("the disk is gone")
            size = self._chunks[number % len(self._chunks)]
            memory = bytearray(self._content[self._position : self._position + size])
            await anyio.lowlevel.checkpoint()
            yield memoryview(memory)
            memory[:] = bytes(len(memory))
            self._position += size
            number += 1

    async def valid(self) -> bool:
        return self._valid
