"""A file as the source of an upload."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread

from cluster_remote.p2p.errors import SourceError
from cluster_remote.p2p.session import Source, SourceReading
from cluster_remote.p2p.stream import CHUNK

__all__ = ["FileSource"]


class FileSource(Source):
    """Reads a file; any number of readers at once, each from its own offset and at its own pace."""

    repeatable = True

    def __init__(self, path: bytes) -> None:
        self.path = path

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        try:
            # Without waiting: a named pipe would make us wait for whoever writes to it.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(f"cannot read {os.fsdecode(self.path)!r}: {error.strerror}") from None
        try:
            yield _FileReading(descriptor, self.path, offset)
        finally:
            os.close(descriptor)


class _FileReading(SourceReading):
    def __init__(self, descriptor: int, path: bytes, offset: int) -> None:
        self._descriptor = descriptor
        self._path = path
        self._before = os.fstat(descriptor)
        if not stat.S_ISREG(self._before.st_mode):
            raise SourceError(f"cannot read {os.fsdecode(path)!r}: it is not a file")
        self._offset = offset
        self.length = self._before.st_size - offset
        if self.length < 0:
            raise SourceError(
                f"{os.fsdecode(path)!r} has {self._before.st_size} bytes; the peer says it has {offset} already"
            )

    async def chunks(self) -> AsyncIterator[bytes]:
        position, end = self._offset, self._offset + self.length
        while position < end:
            wanted = min(CHUNK, end - position)
            try:
                # A thread, because a disk that spins up or a network file system must not stop everything else.
                chunk = await anyio.to_thread.run_sync(os.pread, self._descriptor, wanted, position)
            except OSError as error:
                raise SourceError(f"cannot read {os.fsdecode(self._path)!r}: {error.strerror}") from None
            if not chunk:
                raise SourceError(f"{os.fsdecode(self._path)!r} became shorter while it was read")
            position += len(chunk)
            yield chunk

    async def valid(self) -> bool:
        # An unlocked file may be written to at any time; then what was sent is neither the old nor the new content.
        after = os.fstat(self._descriptor)
        before = self._before
        return (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
