"""A connection over file descriptors: a socket's, or the two pipes of a child process.

Reading and writing go straight to the descriptors and the event loop is only asked when there is nothing to be
done; between requests nobody reads, so whether the peer is still there can be seen without waiting.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import sys
import time
from contextlib import suppress

import anyio
import anyio.lowlevel
import anyio.to_thread

from cluster_remote.p2p.errors import ConnectionLost
from cluster_remote.p2p.stream import Connection

__all__ = ["DescriptorConnection"]

# How many times in a row something can be read or written at once before others get their turn.
_FAIR = 8
# Bytes that a pipe is to hold.
_PIPE = 1024 * 1024
# Seconds after which a thread that sends a file looks whether anybody still wants it.
_SLICE = 0.2


class DescriptorConnection(Connection):
    """Owns both descriptors (which may be the same one)."""

    def __init__(self, reading: int, writing: int) -> None:
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        self._reading = reading
        self._writing = writing
        self._open = True
        self._good = True
        self._in_a_row = 0
        # What the pipe to the peer holds, in bytes, once that has been looked at; 0 for what is none.
        self._pipe: int | None = None

    async def receive(self, max_bytes: int) -> bytes:
        while True:
            self._check_open()
            try:
                data = os.read(self._reading, max_bytes)
            except BlockingIOError:
                self._in_a_row = 0
                await anyio.wait_readable(self._reading)
            except OSError as error:
                raise ConnectionLost(f"the connection broke: {error.strerror}") from None
            else:
                await self._be_fair()
                return data

    async def send_some(self, data: memoryview) -> int:
        while not (sent := self.send_at_once(data)):
            self._in_a_row = 0
            await anyio.wait_writable(self._writing)
        await self._be_fair()
        return sent

    def send_at_once(self, data: bytes | memoryview) -> int:
        """Sends what can be sent without waiting. How many bytes went, possibly none. Raises ConnectionLost."""
        self._check_open()
        try:
            return os.write(self._writing, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionLost(f"the connection broke: {error.strerror}") from None

    def copied_last(self) -> int | None:
        if self._pipe is None:
            self._pipe = _pipe_size(self._writing)
        # As much as the pipe holds, and nothing that was before it is in there any more.
        return self._pipe or None

    async def send_file(self, descriptor: int, offset: int, length: int) -> int:
        self._check_open()
        # Not one of the threads that all share: the others may be waiting for this one's peer to go on.
        limiter = anyio.CapacityLimiter(1)
        while True:
            # A thread, for the disk may have to be waited for. It waits for the peer too, but not for long.
            count = await anyio.to_thread.run_sync(
                _send_file, self._writing, descriptor, offset, length, limiter=limiter
            )
            if count is not None:
                return count

    async def _be_fair(self) -> None:
        """Gives others their turn, now and then, even if this peer is never slower than we are.

        Not every time: a turn of the event loop takes as long as all the rest of a small message.
        """
        self._in_a_row += 1
        if self._in_a_row >= _FAIR:
            self._in_a_row = 0
            await anyio.lowlevel.checkpoint()

    def ended(self) -> bool:
        if self._open and self._good:
            try:
                # Something unasked is as bad as the end: it would be taken for the answer to the next request.
                os.read(self._reading, 1)
            except BlockingIOError:
                return False
            except OSError:
                pass
            self._good = False
        return True

    def close_writing(self) -> None:
        """Closes the writing side where it is a descriptor of its own: the peer sees the end of its input."""
        if self._open and self._writing != self._reading:
            os.close(self._writing)
            self._writing = self._reading

    async def aclose(self, patience: float) -> None:
        if self._open:
            self._open = False
            for descriptor in {self._reading, self._writing}:
                os.close(descriptor)

    def _check_open(self) -> None:
        if not self._open:
            raise ConnectionLost("the connection has been closed")


def _pipe_size(descriptor: int) -> int:
    """Makes a pipe as large as it may be, and gives how much it holds in bytes; 0 for what is no pipe.

    Of Linux only: elsewhere the kernel does not send files into pipes.
    """
    if sys.platform != "linux" or not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return 0
    # Where the user has too many large pipes already, it stays as it is.
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE)
    return fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)


def _move(pipe: int, descriptor: int, offset: int, length: int) -> int:
    try:
        return os.sendfile(pipe, descriptor, offset, length)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
    # A file system that cannot do it.
    return os.write(pipe, os.pread(descriptor, min(length, _PIPE), offset))


def _send_file(pipe: int, descriptor: int, offset: int, length: int) -> int | None:
    """Has the kernel move a part of a file into a pipe, for a fraction of a second. How many bytes went.

    None where the peer has taken nothing. Raises ConnectionLost, OSError.
    """
    writable = select.poll()
    writable.register(pipe, select.POLLOUT)
    end = time.monotonic() + _SLICE
    sent = 0
    while sent < length:
        try:
            count = _move(pipe, descriptor, offset + sent, length - sent)
        except BlockingIOError:
            left = end - time.monotonic()
            if left <= 0 or not writable.poll(left * 1000):
                return sent or None
        except BrokenPipeError as error:
            raise ConnectionLost(f"the connection broke: {error.strerror}") from None
        else:
            sent += count
            if not count or time.monotonic() > end:
                break
    return sent
