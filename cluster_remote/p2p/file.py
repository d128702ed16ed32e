"""Read the source of an upload from a file."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

from cluster_remote.p2p.errors import BeyondTheEnd, SourceError
from cluster_remote.p2p.session import FilePart, Source, SourceReading
from cluster_remote.p2p.stream import CHUNK

__all__ = ["FileSource"]

# Most bytes of a file to keep in memory for all its readers.
_SMALL = 64 * 1024


class FileSource(Source):
    """A file with any number of concurrent readers, each at its own offset and pace. A small one is read only once."""

    repeatable = True

    def __init__(self, path: bytes) -> None:
        self.path = path
        self._small = _Small()

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        try:
            # Non-blocking, because opening a named pipe would wait for a writer.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(f"cannot read {os.fsdecode(self.path)!r}: {error.strerror}") from None
        try:
            yield _FileReading(descriptor, self.path, offset, self._small)
        finally:
            os.close(descriptor)


class _Small:
    """The content of a small file, and the state in which the file had it."""

    def __init__(self) -> None:
        self._lock = anyio.Lock(fast_acquire=True)
        self._state: tuple[int, int] | None = None
        self._content = memoryview(b"")

    async def read(self, descriptor: int, state: tuple[int, int]) -> memoryview:
        """Return what the file has in this state; less if it is truncated meanwhile. Raises OSError."""
        async with self._lock:
            if self._state != state:
                buffer, read = memoryview(bytearray(state[0])), 0
                while read < len(buffer) and (count := await _read_at(descriptor, buffer[read:], read)):
                    read += count
                self._content, self._state = buffer[:read], state
            return self._content


class _FileReading(SourceReading):
    def __init__(self, descriptor: int, path: bytes, offset: int, small: _Small) -> None:
        self._descriptor = descriptor
        self._path = path
        self._small = small
        self._before = os.fstat(descriptor)
        if not stat.S_ISREG(self._before.st_mode):
            raise SourceError(f"cannot read {os.fsdecode(path)!r}: not a regular file")
        self._offset = offset
        self.length = self._before.st_size - offset
        if self.length < 0:
            raise BeyondTheEnd(
                f"{os.fsdecode(path)!r} has {self._before.st_size} bytes, but the peer claims to have {offset} already"
            )

    def file(self) -> FilePart:
        return FilePart(self._descriptor, self._offset)

    def sent(self, count: int) -> None:
        if not count:
            raise self._shorter()
        self._offset += count

    async def chunks(self) -> AsyncIterator[memoryview]:
        position, end = self._offset, self._before.st_size
        buffer = memoryview(bytearray(min(CHUNK, end - position) if end > _SMALL else 0))
        while position < end:
            try:
                if end <= _SMALL:
                    part = (await self._small.read(self._descriptor, _state(self._before)))[position:]
                else:
                    part = buffer[: end - position]
                    part = part[: await _read_at(self._descriptor, part, position)]
            except OSError as error:
                raise SourceError(f"cannot read {os.fsdecode(self._path)!r}: {error.strerror}") from None
            if not part:
                raise self._shorter()
            position += len(part)
            yield part

    def _shorter(self) -> SourceError:
        return SourceError(f"{os.fsdecode(self._path)!r} was truncated while it was being read")

    async def valid(self) -> bool:
        # An unlocked file may change at any time; then what was sent is neither the old nor the new content.
        return _state(os.fstat(self._descriptor)) == _state(self._before)


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


async def _read_at(descriptor: int, buffer: memoryview, position: int) -> int:
    """Read part of a file; return the number of bytes, 0 at its end. Raises OSError."""
    read = _read_cached(descriptor, buffer, position)
    if not read:
        # In a thread, because a slow disk or a network file system must not block everything else.
        read = await anyio.to_thread.run_sync(os.preadv, descriptor, [buffer], position)
    return read


def _read_cached(descriptor: int, buffer: memoryview, position: int) -> int:
    """Read what is in the page cache of part of a file; return the number of bytes, 0 if none or unknown.

    Starting a thread for each small file would take longer than everything else done to send it.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return 0
    try:
        return os.preadv(descriptor, [buffer], position, os.RWF_NOWAIT)
    except OSError as error:
        # Not cached, or not supported by the file system; the thread reports real errors.
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return 0
        raise
