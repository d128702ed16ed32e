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
from collections.abc import Callable
from contextlib import suppress

import anyio
import anyio.lowlevel
import anyio.to_thread

from cluster_remote.p2p.errors import ConnectionLost
from cluster_remote.p2p.session import write_at
from cluster_remote.p2p.stream import CHUNK, Connection

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
        # What the pipes to and from the peer hold, in bytes, once that has been looked at; 0 for what is no pipe.
        self._outgoing_pipe: int | None = None
        self._incoming_pipe: int | None = None

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
        if self._outgoing_pipe is None:
            self._outgoing_pipe = _pipe_size(self._writing)
        # As much as the pipe holds, and nothing that was before it is in there any more.
        return self._outgoing_pipe or None

    async def send_file(self, descriptor: int, offset: int, length: int) -> int:
        self._check_open()
        return await _moved(_send_file, self._writing, descriptor, offset, length)

    async def receive_file(self, descriptor: int, position: int, length: int) -> int:
        self._check_open()
        if self._incoming_pipe is None:
            self._incoming_pipe = _pipe_size(self._reading)
        return await _moved(_receive_file, self._reading, descriptor, position, length, self._incoming_pipe > 0)

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


async def _moved(move: Callable[..., int | None], *arguments: object) -> int:
    """How much `move` has moved, in a thread: the disk may have to be waited for, the peer only for a moment."""
    # Not one of the threads that all share: the others may be waiting for this one's peer to go on.
    limiter = anyio.CapacityLimiter(1)
    while True:
        count = await anyio.to_thread.run_sync(move, *arguments, limiter=limiter)
        if count is not None:
            return count


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


def _receive_file(source: int, descriptor: int, position: int, length: int, pipe: bool) -> int | None:
    """Moves what comes in into a file, for a fraction of a second; from a pipe without looking at it.

    How many bytes came, none at the end; None where the peer has sent nothing. Raises ConnectionLost, OSError.
    """
    readable = select.poll()
    readable.register(source, select.POLLIN)
    end = time.monotonic() + _SLICE
    received = 0
    while received < length:
        try:
            count = _take(source, descriptor, position + received, length - received, pipe)
        except BlockingIOError:
            left = end - time.monotonic()
            if left <= 0 or not readable.poll(left * 1000):
                return received or None
        else:
            received += count
            if not count or time.monotonic() > end:
                break
    return received


def _take(source: int, descriptor: int, position: int, length: int, pipe: bool) -> int:
    if pipe:
        try:
            return os.splice(source, descriptor, length, offset_dst=position, flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
        # A file system that cannot do it.
    try:
        data = os.read(source, min(length, CHUNK))
    except BlockingIOError:
        raise
    except OSError as error:
        raise ConnectionLost(f"the connection broke: {error.strerror}") from None
    write_at(descriptor, data, position)
    return len(data)
