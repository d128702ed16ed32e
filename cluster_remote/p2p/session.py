"""The one interface that everything is built from: a session answers the requests of the protocol.

A peer at the other end of a stream, a peer behind HTTP and a cluster of many sessions all look like this, so
they can be put together in any way: the special remote and the gateway each hold one and do not know which.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from cluster_remote.p2p.errors import Refused
from cluster_remote.p2p.key import UUID, AssociatedFile, Key

__all__ = [
    "Download",
    "FilePart",
    "Present",
    "Progress",
    "Removal",
    "Session",
    "Source",
    "SourceReading",
    "Stored",
    "Upload",
    "write_at",
]

# Called with a position in bytes from the start of the content.
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes that lie in a file from `offset` on; `descriptor` is open for as long as they are read."""

    descriptor: int
    offset: int


class SourceReading(ABC):
    """The bytes of a content from an offset to its end, read once."""

    length: int
    """How many bytes `chunks` yields, in bytes. Known before the first is read, since DATA announces it."""

    def file(self) -> FilePart | None:
        """Where the next bytes lie, if they lie in a file: the kernel can send them without our reading them."""
        return None

    def sent(self, count: int) -> None:
        """That many bytes of the file have been sent, and are not to come as chunks."""
        raise NotImplementedError

    @abstractmethod
    def chunks(self) -> AsyncIterator[bytes | memoryview]:
        """Yields exactly `length` bytes in all; a chunk is only valid until the next is asked for.

        Raises SourceError when it cannot.
        """

    def large_chunks(self) -> AsyncIterator[bytes | memoryview]:
        """The same, for who hands a chunk to others and reads on while they are at work on it: fewer and larger ones,
        where the content is large."""
        return self.chunks()

    @abstractmethod
    async def valid(self) -> bool:
        """After the last chunk: whether the content is what it should be (VALID), or changed on the way (INVALID)."""


class Source(ABC):
    """A content to upload."""

    repeatable: bool
    """Whether it can be read by many at the same time, each from any offset (a file), or only once (a stream)."""

    @abstractmethod
    def read(self, offset: int) -> AbstractAsyncContextManager[SourceReading]:
        """Starts reading at `offset` bytes. Raises SourceError if there is nothing to be read.

        A stream can only be read from the offset that was announced for it or later.
        """


@dataclass(frozen=True, slots=True)
class Present:
    """An answer to an upload: the content is there already, in these repositories besides the session's own."""

    uuids: frozenset[UUID] = frozenset()


@dataclass(frozen=True, slots=True)
class Stored:
    """The outcome of an upload: whether it was stored, and in which repositories besides the session's own.

    `uuids` are those that have the content by this upload, `present` those that had it before. `reasons` says in words,
    for people, why any part of it failed.
    """

    stored: bool
    uuids: frozenset[UUID] = frozenset()
    reasons: tuple[str, ...] = ()
    present: frozenset[UUID] = frozenset()


@dataclass(frozen=True, slots=True)
class Removal:
    """The outcome of a removal. `uuids` were removed from, whether or not it succeeded as a whole."""

    removed: bool
    uuids: frozenset[UUID] = frozenset()
    reasons: tuple[str, ...] = ()


class Upload(ABC):
    """A peer that waits for the bytes from `offset` on."""

    offset: int
    """Bytes that the peer has already, counted from the start of the content."""

    @abstractmethod
    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        """Sends the rest of the content. To be called once.

        Raises SessionError when the outcome is unknown; SourceError when the source failed.
        """

    @abstractmethod
    async def look(self) -> Stored:
        """Ask the peer whether the content has reached it some other way. To be called once, in place of `send`.

        Raises SessionError when the outcome is unknown.
        """


def write_at(descriptor: int, data: bytes | memoryview, position: int) -> None:
    """Writes all of it into a file from byte `position` on. Raises OSError."""
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, position)
        left = left[written:]
        position += written


class Download(ABC):
    """A content on its way here."""

    length: int
    """Bytes that will come, counted from the offset that was asked for."""

    @property
    def origin(self) -> UUID | None:
        """The repository that all of them came from, once they have come; None where that cannot be told."""
        return None

    @abstractmethod
    def chunks(self) -> AsyncIterator[bytes | memoryview]:
        """Yields `length` bytes in all; a chunk is only valid until the next is asked for. Raises SessionError."""

    async def save(self, descriptor: int, position: int, progress: Progress) -> None:
        """Writes what would come as chunks into a file, from byte `position` on. In place of `chunks`.

        Raises SessionError; OSError where the file cannot be written.
        """
        async for chunk in self.chunks():
            write_at(descriptor, chunk, position)
            position += len(chunk)
            progress(position)

    @abstractmethod
    async def valid(self) -> bool:
        """After the last chunk: whether the server vouches for what it sent. False also for a key it does not have."""


class Session(ABC):
    """Answers requests about keys. One request at a time: whoever wants more at once opens more sessions.

    Every method raises a SessionError (see errors.py) when there is no answer that can be relied on. After
    `Refused` the session goes on as before; after any other error, and after a cancellation, the request's
    connection is closed and the next request opens a new one.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Which session this is, for people: an address, the name of a remote. Never a secret."""

    @abstractmethod
    async def open(self) -> UUID:
        """Makes sure there is a connection, and says who answers. Any request does this by itself."""

    @property
    @abstractmethod
    def version(self) -> int | None:
        """The protocol version agreed on, or None where there is no connection."""

    @abstractmethod
    async def check_present(self, key: Key) -> bool:
        """Whether the content is there: a definite answer, or an error."""

    async def check_all(self, keys: Sequence[Key]) -> list[bool | Refused]:
        """Whether each content is there, in the order of `keys`; for one that was answered with ERROR, the refusal.

        Where the way to the peer allows it, many questions are under way at once. Raises SessionError where not all
        of them were answered.
        """
        answers: list[bool | Refused] = []
        for key in keys:
            try:
                answers.append(await self.check_present(key))
            except Refused as refusal:
                answers.append(refusal)
        return answers

    @abstractmethod
    def upload(self, key: Key, file: AssociatedFile) -> AbstractAsyncContextManager[Present | Upload]:
        """Offers a content. Leaving the context without `send` gives the upload up (and closes the connection)."""

    async def store(
        self, key: Key, file: AssociatedFile, source: Source, progress: Progress | None = None
    ) -> Present | Stored:
        """Uploads a content that is at hand, from the offer to the outcome.

        A session of many sessions does this better than in the two steps of `upload`: where the source is
        repeatable, nobody waits for anybody.
        """
        async with self.upload(key, file) as offer:
            if isinstance(offer, Present):
                return offer
            return await offer.send(source, progress)

    @abstractmethod
    def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AbstractAsyncContextManager[Download]:
        """Asks for the content from `offset` bytes on.

        Leaving the context before the end gives the download up (and closes the connection).
        """

    @abstractmethod
    async def remove(self, key: Key, before: int | None = None) -> Removal:
        """Removes the content; success also if it was not there.

        With `before`, only as long as the session's clock has not passed that many seconds (see `timestamp`).
        """

    @abstractmethod
    async def timestamp(self) -> int:
        """Seconds of a monotonic clock of the server. Raises Refused below version 3."""

    @abstractmethod
    def lock(self, key: Key) -> AbstractAsyncContextManager[bool]:
        """Prevents the content from being removed while the context is open. Gives whether that succeeded.

        The session can do nothing else meanwhile.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Closes the connection and everything behind it. Bounded in time, never raises."""
