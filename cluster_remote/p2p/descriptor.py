"""Connect over file descriptors: a socket, or the two pipes of a child process.

Reads and writes go straight to the descriptors, and the event loop is only used when they would block. Nothing reads
between requests, so a closed connection can be detected without waiting.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
import struct
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress

import anyio
import anyio.lowlevel
import anyio.to_thread

from cluster_remote.p2p.errors import ConnectionLost
from cluster_remote.p2p.session import write_at
from cluster_remote.p2p.stream import CHUNK, Connection

__all__ = ["DescriptorConnection", "has_unread", "is_hung_up", "is_readable"]

# Reads or writes in a row that succeed without blocking before other tasks get a turn.
_FAIR = 8
# Capacity requested for pipes, in bytes.
_PIPE = 1024 * 1024
# Seconds after which a transfer thread checks for cancellation.
_SLICE = 0.2
# Shortest and longest sleep in seconds while the peer is busy, see `_Pace`.
_MIN_SLEEP, _MAX_SLEEP = 0.0003, 0.004
# A thread sends buffers of at least this many bytes too; smaller ones are not worth one.
_WORTH_A_THREAD = 2 * CHUNK


class _Pace:
    """Choose how long to sleep when a descriptor is full or empty, so that the next attempt moves enough.

    The kernel wakes us as soon as the peer has moved one page of a pipe that holds 256, and each wake-up costs more
    than moving a page. So sleep until about a quarter of the pipe can be moved, but never until all of it can: the peer
    must not run idle. A socket's capacity is unknown, and small.
    """

    def __init__(self, capacity: int) -> None:
        """Create a pace for a pipe of `capacity` bytes; 0 if it is not a pipe."""
        self.capacity = capacity
        self._seconds = _MIN_SLEEP
        self._woken = False

    def sleep(self) -> None:
        time.sleep(self._seconds)
        self._woken = True

    def moved(self, count: int) -> None:
        """Adapt the sleep to the `count` bytes that could be moved."""
        if not self._woken:
            return
        self._woken = False
        if count < self.capacity // 8:
            self._seconds = min(2 * self._seconds, _MAX_SLEEP)
        elif count > self.capacity // 3:
            self._seconds = max(self._seconds / 2, _MIN_SLEEP)


class DescriptorConnection(Connection):
    """A connection that owns its two descriptors, which may be the same."""

    def __init__(self, reading: int, writing: int) -> None:
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        self._reading = reading
        self._writing = writing
        self._open = True
        self._usable = True
        self._in_a_row = 0
        # Created for the first large content.
        self._outgoing: _Pace | None = None
        self._incoming: _Pace | None = None

    async def receive(self, max_bytes: int) -> bytes:
        while True:
            self._check_open()
            try:
                data = os.read(self._reading, max_bytes)
            except BlockingIOError:
                self._in_a_row = 0
                await anyio.wait_readable(self._reading)
            except OSError as error:
                raise _broken(error) from None
            else:
                await self._be_fair()
                return data

    async def receive_much(self, length: int) -> memoryview:
        self._check_open()
        buffer = memoryview(bytearray(length))
        received = buffer[: await _in_thread(_receive_much, self._reading, buffer, self._pace_in())]
        # A short read must not keep the whole buffer in memory.
        return received.toreadonly() if len(received) > length // 2 else memoryview(bytes(received))

    async def send_some(self, data: memoryview) -> int:
        if len(data) >= _WORTH_A_THREAD:
            self._check_open()
            return await _in_thread(_send_much, self._writing, data, self._pace_out())
        while not (sent := self.send_at_once(data)):
            self._in_a_row = 0
            await anyio.wait_writable(self._writing)
        await self._be_fair()
        return sent

    def send_at_once(self, data: bytes | memoryview) -> int:
        """Send what can be sent without waiting; return how many bytes, possibly 0. Raises ConnectionLost."""
        self._check_open()
        try:
            return os.write(self._writing, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _broken(error) from None

    def copied_last(self) -> int | None:
        # Once a full buffer's worth has followed, everything before it has been consumed.
        return self._pace_out().capacity or _held_by_unix_socket(self._writing) or None

    async def send_file(self, descriptor: int, offset: int, length: int) -> int:
        self._check_open()
        return await _in_thread(_send_file, self._writing, descriptor, offset, length, self._pace_out())

    async def receive_file(self, descriptor: int, position: int, length: int) -> int:
        self._check_open()
        return await _in_thread(_receive_file, self._reading, descriptor, position, length, self._pace_in())

    def _pace_out(self) -> _Pace:
        if self._outgoing is None:
            self._outgoing = _Pace(_pipe_size(self._writing))
        return self._outgoing

    def _pace_in(self) -> _Pace:
        if self._incoming is None:
            self._incoming = _Pace(_pipe_size(self._reading))
        return self._incoming

    async def _be_fair(self) -> None:
        """Yield to other tasks now and then, even if this peer never makes us wait.

        Not every time: a turn of the event loop costs as much as the rest of a small message.
        """
        self._in_a_row += 1
        if self._in_a_row >= _FAIR:
            self._in_a_row = 0
            await anyio.lowlevel.checkpoint()

    def ended(self) -> bool:
        if self._open and self._usable:
            try:
                # Unsolicited data is as bad as the end: it would look like the answer to the next request.
                os.read(self._reading, 1)
            except BlockingIOError:
                return False
            except OSError:
                pass
            self._usable = False
        return True

    def hung_up(self) -> bool:
        """See Connection. Of two pipes, only the one to the peer is checked: the peer may close its output early."""
        return not self._open or is_hung_up(self._writing)

    def close_writing(self) -> None:
        """Close the writing side if it has its own descriptor, so that the peer sees the end of its input."""
        if self._open and self._writing != self._reading:
            os.close(self._writing)
            self._writing = self._reading

    async def aclose(self, grace: float) -> None:
        if self._open:
            self._open = False
            for descriptor in {self._reading, self._writing}:
                os.close(descriptor)

    def _check_open(self) -> None:
        if not self._open:
            raise ConnectionLost("the connection has been closed")


def _broken(error: OSError) -> ConnectionLost:
    return ConnectionLost(f"the connection broke: {error.strerror}")


def _pipe_size(descriptor: int) -> int:
    """Enlarge a pipe and return its capacity in bytes; 0 if it is not a pipe.

    Linux only: other kernels do not send files into pipes.
    """
    if sys.platform != "linux" or not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return 0
    # Fails if the user already has too many large pipes.
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE)
    return fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)


def _held_by_unix_socket(descriptor: int) -> int:
    """Return how many unread bytes a unix socket can hold; 0 if it is not a unix socket.

    Linux only: it accepts data until the buffer is full, up to half a buffer at a time, so it can overshoot. (TCP data
    may be in the buffers of both sides.)
    """
    if sys.platform != "linux" or not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return 0
    with socket.socket(fileno=os.dup(descriptor)) as opened:
        return 2 * opened.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) if opened.family == socket.AF_UNIX else 0


async def _in_thread(move: Callable[..., int | None], *arguments: object) -> int:
    """Run `move` in a thread, because the disk may block, until it has moved some bytes; return how many."""
    # Do not use the shared thread limit: its threads may all be waiting for this one's peer.
    limiter = anyio.CapacityLimiter(1)
    while True:
        count = await anyio.to_thread.run_sync(move, *arguments, limiter=limiter)
        if count is not None:
            return count


def _keep_moving(descriptor: int, event: int, length: int, pace: _Pace, move: Callable[[int], int]) -> int | None:
    """Call `move` repeatedly for a fraction of a second and return how many bytes it moved; 0 at the end.

    `move` gets the bytes moved so far and returns how many more it moved. If it would block, wait for `event` on the
    descriptor. Returns None if nothing could be moved in time; moves at most `length` bytes.
    """
    ready = select.poll()
    ready.register(descriptor, event)
    end = time.monotonic() + _SLICE
    moved = 0
    while moved < length:
        try:
            count = move(moved)
        except BlockingIOError:
            left = end - time.monotonic()
            if left <= 0 or not ready.poll(left * 1000):
                return moved or None
            pace.sleep()
        else:
            pace.moved(count)
            moved += count
            if not count or time.monotonic() > end:
                break
    return moved


def _send_some(pipe: int, descriptor: int, offset: int, length: int) -> int:
    try:
        return os.sendfile(pipe, descriptor, offset, length)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
    # The file system does not support it.
    return os.write(pipe, os.pread(descriptor, min(length, _PIPE), offset))


def _send_file(pipe: int, descriptor: int, offset: int, length: int, pace: _Pace) -> int | None:
    """Have the kernel send part of a file. See `_keep_moving`. Raises ConnectionLost, OSError."""
    try:
        return _keep_moving(
            pipe, select.POLLOUT, length, pace, lambda sent: _send_some(pipe, descriptor, offset + sent, length - sent)
        )
    except ConnectionError as error:
        raise _broken(error) from None


def _receive_file(source: int, descriptor: int, position: int, length: int, pace: _Pace) -> int | None:
    """Receive into a file, from a pipe without copying. See `_keep_moving`.

    Raises ConnectionLost, OSError.
    """
    pipe = pace.capacity > 0
    return _keep_moving(
        source,
        select.POLLIN,
        length,
        pace,
        lambda count: _receive_some(source, descriptor, position + count, length - count, pipe),
    )


def _send_much(descriptor: int, data: memoryview, pace: _Pace) -> int | None:
    """Send from memory. See `_keep_moving`. Raises ConnectionLost."""
    try:
        return _keep_moving(descriptor, select.POLLOUT, len(data), pace, lambda sent: os.write(descriptor, data[sent:]))
    except OSError as error:
        raise _broken(error) from None


def _receive_much(descriptor: int, buffer: memoryview, pace: _Pace) -> int | None:
    """Receive into memory. See `_keep_moving`. Raises ConnectionLost."""
    try:
        return _keep_moving(
            descriptor, select.POLLIN, len(buffer), pace, lambda count: os.readv(descriptor, [buffer[count:]])
        )
    except OSError as error:
        raise _broken(error) from None


def _receive_some(source: int, descriptor: int, position: int, length: int, pipe: bool) -> int:
    if pipe:
        try:
            return os.splice(source, descriptor, length, offset_dst=position, flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
        # The file system does not support it.
    try:
        data = os.read(source, min(length, CHUNK))
    except BlockingIOError:
        raise
    except OSError as error:
        raise _broken(error) from None
    write_at(descriptor, data, position)
    return len(data)


def is_readable(descriptor: int) -> bool:
    """Return whether data, or the end of the stream, can be read from a socket. Does not wait."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def has_unread(descriptor: int) -> bool:
    """Return whether data from the other end of a socket or pipe waits to be read. Does not wait."""
    try:
        return bool(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0])
    except OSError:
        # It is neither, such as /dev/null.
        return False


def is_hung_up(descriptor: int) -> bool:
    """Return whether the other end of a socket or pipe is closed, as far as the kernel can tell. Does not wait."""
    poll = select.poll()
    # POLLHUP and POLLERR are reported without being asked for.
    poll.register(descriptor, getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))
