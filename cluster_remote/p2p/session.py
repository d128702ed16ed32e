"""Define Session, the interface that everything else is built on: it answers the protocol's requests.

A peer at the other end of a stream, a peer behind HTTP and a cluster of many sessions all implement it, so they
compose freely: the special remote and the gateway each hold one without knowing which kind.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
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
    "WrappedSource",
    "write_at",
]

# Called with the position reached, in bytes from the start of the content.
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class FilePart:
    """Part of a file, starting at byte `offset`; `descriptor` stays open while it is being read."""

    descriptor: int
    offset: int


class SourceReading(ABC):
    """A single pass over the content, from an offset to the end."""

    length: int
    """Total bytes that `chunks` yields. Known before reading starts, because DATA announces it."""

    def file(self) -> FilePart | None:
        """Return where the next bytes are if they are in a file, so that the kernel can send them; otherwise None."""
        return None

    def sent(self, count: int) -> None:
        """Skip the next `count` bytes, which have been sent directly from the file."""
        raise NotImplementedError

    @abstractmethod
    def chunks(self) -> AsyncIterator[bytes | memoryview]:
        """Yield exactly `length` bytes in total; a chunk is only valid until the next one is requested.

        Raises SourceError if the content cannot be read.
        """

    def large_chunks(self) -> AsyncIterator[bytes | memoryview]:
        """Yield the same bytes in fewer, larger chunks if the content is large.

        For callers that read ahead while others are still processing earlier chunks.
        """
        return self.chunks()

    @abstractmethod
    async def valid(self) -> bool:
        """Return whether the content was intact (VALID) or changed meanwhile (INVALID). Call after the last chunk."""


class Source(ABC):
    """Content to upload."""

    repeatable: bool
    """Whether it supports concurrent readers, each from any offset (a file), or only one read (a stream)."""

    @abstractmethod
    def read(self, offset: int) -> AbstractAsyncContextManager[SourceReading]:
        """Start reading at byte `offset`. Raises SourceError if the content cannot be read.

        A stream can only be read from its announced offset or later.
        """


class WrappedSource(Source):
    """A source each of whose readings is wrapped by `wrap`."""

    def __init__(self, inside: Source, wrap: Callable[[SourceReading], SourceReading]) -> None:
        self.repeatable = inside.repeatable
        self._inside = inside
        self._wrap = wrap

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        async with self._inside.read(offset) as reading:
            yield self._wrap(reading)


@dataclass(frozen=True, slots=True)
class Present:
    """The answer to an upload if the content is already present; `uuids` are repositories besides the session's own."""

    uuids: frozenset[UUID] = frozenset()


@dataclass(frozen=True, slots=True)
class Stored:
    """The outcome of an upload.

    `uuids` are the repositories, besides the session's own, that received the content from this upload; `present` those
    that already had it. `reasons` are human-readable explanations of failures.
    """

    stored: bool
    uuids: frozenset[UUID] = frozenset()
    reasons: tuple[str, ...] = ()
    present: frozenset[UUID] = frozenset()

    @property
    def newly_stored(self) -> bool:
        """Return whether this upload stored the content anywhere that did not have it yet.

        This is what a server reports to its client, which may undo it (as with git-annex 10.20261026).
        """
        return self.stored and bool(self.uuids or not self.present)


@dataclass(frozen=True, slots=True)
class Removal:
    """The outcome of a removal. `uuids` no longer have the content, even if the removal as a whole failed."""

    removed: bool
    uuids: frozenset[UUID] = frozenset()
    reasons: tuple[str, ...] = ()


class Upload(ABC):
    """A peer waiting for the content, starting at byte `offset`."""

    offset: int
    """Bytes that the peer already has, from the start of the content."""

    @abstractmethod
    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        """Send the rest of the content. May be called once.

        Raises SessionError if the outcome is unknown, SourceError if the source failed.
        """

    @abstractmethod
    async def check_arrived(self) -> Stored:
        """Ask the peer whether the content has reached it some other way. May be called once, instead of `send`.

        Raises SessionError if the outcome is unknown.
        """


def write_at(descriptor: int, data: bytes | memoryview, position: int) -> None:
    """Write all of `data` to a file at byte `position`. Raises OSError."""
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, position)
        left = left[written:]
        position += written


class Download(ABC):
    """Content being received."""

    length: int
    """Bytes to be received, counted from the requested offset."""

    verified = False
    """Whether `save` has verified the checksum of the complete file."""

    @property
    def origin(self) -> UUID | None:
        """Return the repository that sent all of the content, once it is complete; None if unknown."""
        return None

    @abstractmethod
    def chunks(self) -> AsyncIterator[bytes | memoryview]:
        """Yield `length` bytes in total; a chunk is only valid until the next one is requested. Raises SessionError.

        If an iteration stops early, another one, or `save`, continues from there.
        """

    def may_spread(self, directory: bytes) -> None:  # noqa: B027 -- only a cluster has several to choose from
        """Let `save` fetch from several repositories at once, keeping early data in a temporary file in `directory`.

        Call only if the content's checksum is verified afterwards. If several sent parts, there is no `origin`.
        """

    async def save(self, descriptor: int, position: int, progress: Progress) -> None:
        """Write the content to a file at byte `position`. Call instead of `chunks`.

        Raises SessionError; OSError if the file cannot be written.
        """
        async for chunk in self.chunks():
            write_at(descriptor, chunk, position)
            position += len(chunk)
            progress(position)

    @abstractmethod
    async def valid(self) -> bool:
        """Return whether the server says that the content it sent is valid. Call after the last chunk.

        Also False for a key that the server does not have.
        """


class Session(ABC):
    """Answer requests about keys, one at a time; open more sessions for concurrent requests.

    Every method raises a SessionError (see errors.py) if there is no reliable answer. The session stays usable after
    `Refused`; after any other error or a cancellation the request's connection is closed, and the next request opens a
    new one.
    """

    pipelines_checks = False
    """Whether `check_all` pipelines its requests, so that collecting several keys pays off."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Return a display name, such as an address or a remote's name. Never contains a secret."""

    @abstractmethod
    async def open(self) -> UUID:
        """Connect if necessary and return the peer's UUID. Every request connects by itself."""

    @property
    @abstractmethod
    def version(self) -> int | None:
        """Return the negotiated protocol version, or None if not connected."""

    @abstractmethod
    async def check_present(self, key: Key) -> bool:
        """Return whether the content is present. Raises unless the answer is definite."""

    async def check_everywhere(self, key: Key) -> bool:
        """Return whether the content is present anywhere, whatever a log says; see `check_present`."""
        return await self.check_present(key)

    async def check_all(self, keys: Sequence[Key]) -> list[bool | Refused]:
        """Return for each of `keys`, in order, whether its content is present, or the Refused if the peer said ERROR.

        Requests are pipelined if the transport supports it. Raises SessionError unless all of them were answered.
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
        """Offer content. Leaving the context without `send` aborts the upload and closes the connection."""

    async def store(
        self, key: Key, file: AssociatedFile, source: Source, progress: Progress | None = None
    ) -> Present | Stored:
        """Upload content that is available locally: offer it, send it and return the outcome.

        A cluster does this faster than with `upload`: if the source is repeatable, nodes need not wait for each other.
        """
        async with self.upload(key, file) as offer:
            if isinstance(offer, Present):
                return offer
            return await offer.send(source, progress)

    @abstractmethod
    def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AbstractAsyncContextManager[Download]:
        """Request the content, starting at byte `offset`.

        Leaving the context early aborts the download and closes the connection.
        """

    async def read_small(self, key: Key) -> bytes | None:
        """Return the content, verified by its checksum, if it is small and on a local disk; otherwise None.

        A shortcut for `download`, which finds out why there is none. Bounded in time, never connects.
        """
        return None

    @abstractmethod
    async def remove(self, key: Key, before: int | None = None) -> Removal:
        """Remove the content; removing absent content succeeds too.

        With `before`, remove it only if the session's clock has not passed `before` seconds (see `timestamp`).
        """

    @abstractmethod
    async def timestamp(self) -> int:
        """Return the server's monotonic clock in seconds. Raises Refused below protocol version 3."""

    @abstractmethod
    def lock(self, key: Key) -> AbstractAsyncContextManager[bool]:
        """Lock the content against removal while the context is open, and yield whether that succeeded.

        The session cannot serve other requests meanwhile.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connection and every resource behind it. Bounded in time, never raises."""
