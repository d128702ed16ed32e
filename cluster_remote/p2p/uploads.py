"""Uploads of the same key at the same time, through one gateway.

A node that is no git-annex repository, such as a special remote, replaces what it has by what arrives last. Asking
before an upload is not enough to keep an append-only client from replacing content: others may store it meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from cluster_remote.p2p.errors import SourceError
from cluster_remote.p2p.key import Key
from cluster_remote.p2p.session import FilePart, Progress, Source, SourceReading, Stored, Upload, WrappedSource

__all__ = ["Uploads", "Yielding", "watched"]


class _Running:
    """One upload: whether its content has arrived, and whether another upload's did before."""

    def __init__(self, key: Key, overtaken: bool) -> None:
        self.key = key
        self.overtaken = overtaken
        self.arrived = False


class Uploads:
    """The uploads in progress, by key."""

    def __init__(self) -> None:
        self._running: dict[Key, list[_Running]] = {}

    @contextmanager
    def running(self, key: Key) -> Iterator[_Running]:
        """Count an upload as in progress."""
        others = self._running.setdefault(key, [])
        upload = _Running(key, any(other.arrived for other in others))
        others.append(upload)
        try:
            yield upload
        finally:
            others.remove(upload)
            if not others:
                del self._running[key]

    def arrived(self, upload: _Running) -> None:
        """Note that all of an upload's content has arrived, so that it is about to be stored."""
        upload.arrived = True
        for other in self._running[upload.key]:
            if other is not upload:
                other.overtaken = True


class Yielding(Upload):
    """An upload that takes part in `uploads`; an append-only one fails if another one was faster."""

    def __init__(self, inside: Upload, uploads: Uploads, running: _Running, append_only: bool) -> None:
        self.offset = inside.offset
        self._inside = inside
        self._uploads = uploads
        self._running = running
        self._append_only = append_only

    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        return await self._inside.send(watched(source, self._arrive), progress)

    async def check_arrived(self) -> Stored:
        return await self._inside.check_arrived()

    def _arrive(self) -> None:
        """Note that the content has arrived. Raises SourceError if it may not be stored any more."""
        if self._append_only and self._running.overtaken:
            raise SourceError("another client uploaded this content meanwhile, and append-only clients replace nothing")
        self._uploads.arrived(self._running)


def watched(source: Source, arrive: Callable[[], None]) -> Source:
    """Return a source that calls `arrive` at the end of valid content."""
    return WrappedSource(source, lambda reading: _WatchedReading(reading, arrive))


class _WatchedReading(SourceReading):
    def __init__(self, inside: SourceReading, arrive: Callable[[], None]) -> None:
        self.length = inside.length
        self._inside = inside
        self._arrive = arrive

    def file(self) -> FilePart | None:
        return self._inside.file()

    def sent(self, count: int) -> None:
        self._inside.sent(count)

    def chunks(self) -> AsyncIterator[bytes | memoryview]:
        return self._inside.chunks()

    def large_chunks(self) -> AsyncIterator[bytes | memoryview]:
        return self._inside.large_chunks()

    async def valid(self) -> bool:
        if not await self._inside.valid():
            return False
        self._arrive()
        return True
