"""Send and receive messages and DATA over a connection, with deadlines and limits.

Deadlines measure progress: every byte of DATA restarts the clock, so a slow peer may take as long as it needs and a
stalled one is dropped. A line must arrive in full within the deadline.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import TracebackType

import anyio

from cluster_remote.p2p.errors import ConnectionLost, ProtocolError, SourceError, TimedOut
from cluster_remote.p2p.messages import Data, MalformedMessage, Message, parse, serialise
from cluster_remote.p2p.session import SourceReading, write_at

__all__ = ["CHUNK", "LARGE_CHUNK", "MAX_LINE", "Connection", "Deadline", "MessageStream", "Portions", "Trace"]

# More than any legitimate line needs: a key is a file name, and lists of UUIDs are short.
MAX_LINE = 64 * 1024
# Bytes read or written at once.
CHUNK = 256 * 1024
# Bytes to read ahead of large contents while earlier bytes are still being processed, shared by all contents.
LARGE_CHUNK = 4 * 1024 * 1024
# Content up to _SMALL bytes is sent in one write with its DATA and VALID. Content from a slow source is held back for
# at most _HELD seconds, or the peer would time out.
_SMALL = 256 * 1024
_HELD = 0.25

# Target seconds for consumers to process one portion of a large content.
_PORTION_SECONDS = 0.25

# Files of at least this many bytes are sent by the kernel if possible; smaller ones are not worth a thread.
_LARGE = 4 * 1024 * 1024
# Most bytes to send without a deadline if that need not wait.
_SHORT = 16 * 1024

# How many contents this process is reading ahead; they share LARGE_CHUNK.
_reading_ahead = 0

# Called with True for a sent message, False for a received one.
Trace = Callable[[bool, Message], None]


class Connection(ABC):
    """A bidirectional byte stream with one reader and one writer at a time."""

    @abstractmethod
    async def receive(self, max_bytes: int) -> bytes:
        """Return 1 to `max_bytes` bytes, or none at the end of the stream. Raises ConnectionLost."""

    async def receive_much(self, length: int) -> bytes | memoryview:
        """Receive part of a large content, favouring throughput over latency; otherwise like `receive`."""
        return await self.receive(min(length, CHUNK))

    @abstractmethod
    async def send_some(self, data: memoryview) -> int:
        """Send at least one byte of `data`, waiting if necessary; return how many were sent. Raises ConnectionLost."""

    def send_at_once(self, data: memoryview) -> int:
        """Send what can be sent without waiting; return how many bytes, possibly 0. Raises ConnectionLost."""
        return 0

    def copied_last(self) -> int | None:
        """Return how many trailing bytes of a file must go through `send_some`; None if `send_file` is unsupported.

        `send_file` does not copy: the peer reads the file's own pages, so a change to the file matters until the peer
        has consumed all of them. Once the trailing bytes are accepted, it has.
        """
        return None

    async def send_file(self, descriptor: int, offset: int, length: int) -> int:
        """Send at most `length` bytes straight from a file and return how many were sent; 0 at the end of the file.

        Waits until at least one byte can be sent. Raises ConnectionLost; OSError if the file cannot be read.
        """
        raise NotImplementedError

    async def receive_file(self, descriptor: int, position: int, length: int) -> int:
        """Receive 1 to `length` bytes into a file at byte `position` and return how many; 0 at the end of the stream.

        Raises ConnectionLost; OSError if the file cannot be written.
        """
        data = await self.receive(min(length, CHUNK))
        write_at(descriptor, data, position)
        return len(data)

    @abstractmethod
    def ended(self) -> bool:
        """Return whether the peer closed the connection or sent unsolicited data while it was idle.

        Does not wait, and consumes nothing from a connection that is still usable.
        """

    def hung_up(self) -> bool:
        """Return whether the peer has closed its reading or its writing side. Does not wait, and consumes nothing."""
        return False

    @abstractmethod
    async def aclose(self, grace: float) -> None:
        """Close the connection and end the process behind it, if any, by force after `grace` seconds. Never raises."""

    async def stderr_tail(self) -> str:
        """Return what the peer wrote outside the protocol (standard error) as one line; often empty."""
        return ""


class Portions:
    """Choose how much of a large content to read at once: what consumers process in a quarter of a second.

    Nothing is read while they process a portion, so the peer sees no progress: portions must be small if they are slow.
    They may buffer `LARGE_CHUNK` before processing, so the first bytes say nothing about their speed.
    """

    def __init__(self) -> None:
        self._portion = CHUNK
        self._taken = 0

    def next(self, most: int) -> int:
        """Return how many bytes to read; `most` is the memory available."""
        return max(CHUNK, min(self._portion, most))

    def taken(self, count: int, seconds: float) -> None:
        """Note that consumers processed `count` bytes in `seconds`."""
        self._taken += count
        if self._taken > 2 * LARGE_CHUNK:
            # Judge by the last portion alone, so that a consumer that slows down gets a small one next.
            affordable = _PORTION_SECONDS * count / seconds if seconds else math.inf
            self._portion = int(min(2 * self._portion, max(affordable, CHUNK), LARGE_CHUNK))


class Deadline:
    """Raise TimedOut, with `message`, after a number of seconds.

    A class, because that is faster and every message enters it.
    """

    def __init__(self, seconds: float, message: str) -> None:
        self._seconds = seconds
        self._message = message

    def __enter__(self) -> anyio.CancelScope:
        self._scope = anyio.CancelScope(deadline=anyio.current_time() + self._seconds)
        return self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, trace)
        if self._scope.cancelled_caught:
            raise TimedOut(self._message) from None


class MessageStream:
    """Send and receive messages over a connection. `timeout` is in seconds without progress."""

    def __init__(self, connection: Connection, timeout: float, trace: Trace | None = None) -> None:
        self.connection = connection
        self.timeout = timeout
        self._trace = trace
        self._buffer = bytearray()
        # How many bytes were already searched for a newline, so that reading a line takes linear time.
        self._searched = 0

    def _deadline(self, doing: str, extra_timeout: float = 0) -> Deadline:
        seconds = self.timeout + extra_timeout
        return Deadline(seconds, f"no progress for {seconds:.3g} seconds while {doing}")

    async def send(self, *messages: Message) -> None:
        """Send messages in one write. Raises TimedOut, ConnectionLost."""
        for message in messages:
            self._log(True, message)
        await self._send_all(memoryview(b"".join(map(serialise, messages))), "sending a message")

    async def _send_all(self, data: memoryview, doing: str) -> None:
        # A short message nearly always fits: setting a deadline would cost as much as sending it.
        sent = self.connection.send_at_once(data) if len(data) <= _SHORT else 0
        if sent == len(data):
            return
        with self._deadline(doing) as scope:
            while sent < len(data):
                sent += await self.connection.send_some(data[sent:])
                scope.deadline = anyio.current_time() + self.timeout

    async def receive(self, doing: str = "waiting for an answer", extra_timeout: float = 0) -> Message:
        """Return the next message, allowing `extra_timeout` seconds on top of the timeout.

        Raises TimedOut, ConnectionLost (also at the end of the stream), ProtocolError.
        """
        if self.has_line():
            # The line is already buffered: setting a deadline would cost several times as much as reading it.
            line = await self._line(doing)
        else:
            with self._deadline(doing, extra_timeout):
                line = await self._line(doing)
        try:
            message = parse(line)
        except MalformedMessage as error:
            raise ProtocolError(f"bad message while {doing}: {error}") from None
        self._log(False, message)
        return message

    def has_line(self) -> bool:
        """Return whether the next message has arrived, so that `receive` does not wait."""
        return self._buffer.find(b"\n", self._searched) >= 0

    async def _line(self, doing: str) -> bytes:
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._searched = 0
                if end > MAX_LINE:
                    break
                return line
            self._searched = len(self._buffer)
            if self._searched > MAX_LINE:
                break
            data = await self.connection.receive(MAX_LINE)
            if not data:
                raise ConnectionLost(f"the connection was closed while {doing}")
            self._buffer += data
        raise ProtocolError(f"a line of more than {MAX_LINE} bytes while {doing}")

    async def send_data(self, reading: SourceReading, after: Callable[[bool], list[Message]]) -> bool:
        """Send DATA, the content and the messages that `after` returns for its validity; return the validity.

        The deadline applies to the peer only, not to reading the source. Raises TimedOut, ConnectionLost; SourceError
        if the source yields more or fewer bytes than announced, after which the connection is unusable.
        """
        announcement = Data(reading.length)
        self._log(True, announcement)
        pending = bytearray(serialise(announcement))
        held_until: float = anyio.current_time() + _HELD
        left = reading.length
        tail = self.connection.copied_last() if left > _LARGE else None
        if tail is not None and tail < left and reading.file() is not None:
            await self._send_all(memoryview(pending), "sending content")
            pending = bytearray()
            left -= await self._send_file(reading, left - tail)
            # Check the file only after sending the rest: until then the peer may still be reading the file's pages.
            held_until = 0
        async for chunk in reading.chunks():
            left -= len(chunk)
            if left < 0:
                raise SourceError("the content is longer than announced")
            if len(pending) + len(chunk) <= _SMALL and anyio.current_time() < held_until:
                pending += chunk
                continue
            if pending:
                await self._send_all(memoryview(pending), "sending content")
                pending = bytearray()
            await self._send_all(memoryview(chunk), "sending content")
        if left:
            raise SourceError(f"the content ended {left} bytes early")
        valid = await reading.valid()
        messages = after(valid)
        for message in messages:
            self._log(True, message)
        pending += b"".join(map(serialise, messages))
        await self._send_all(memoryview(pending), "sending content")
        return valid

    async def _send_file(self, reading: SourceReading, length: int) -> int:
        """Send the first `length` bytes of a reading straight from its file and return `length`."""
        left = length
        while left > 0:
            part = reading.file()
            assert part is not None
            with self._deadline("sending content"):
                try:
                    count = await self.connection.send_file(part.descriptor, part.offset, left)
                except OSError as error:
                    raise SourceError(f"the content cannot be read: {error.strerror}") from None
            reading.sent(count)
            left -= count
        return length

    async def receive_data(self, length: int) -> AsyncIterator[bytes]:
        """Yield the `length` bytes that follow a DATA message. Raises TimedOut, ConnectionLost."""
        left = length
        if left and self._buffer:
            chunk = self._take_buffered(left)
            left -= len(chunk)
            yield chunk
        while left:
            with self._deadline("receiving content"):
                chunk = await self.connection.receive(min(left, CHUNK))
            if not chunk:
                raise _closed_early(left, length)
            left -= len(chunk)
            yield chunk

    async def receive_ahead(self, length: int) -> AsyncGenerator[bytes | memoryview, None]:
        """Yield the same as `receive_data`, but large contents in large chunks that stay valid. See `LARGE_CHUNK`."""
        global _reading_ahead
        left, portions = length, Portions()
        _reading_ahead += 1
        try:
            if left > _LARGE and self._buffer:
                first = self._take_buffered(left)
                left -= len(first)
                yield first
            while left > _LARGE:
                with self._deadline("receiving content"):
                    chunk = await self.connection.receive_much(min(left, portions.next(LARGE_CHUNK // _reading_ahead)))
                if not chunk:
                    raise _closed_early(left, length)
                left -= len(chunk)
                yielded = anyio.current_time()
                yield chunk
                portions.taken(len(chunk), anyio.current_time() - yielded)
        finally:
            _reading_ahead -= 1
        async for rest in self.receive_data(left):
            yield rest

    async def receive_into(self, length: int, descriptor: int, position: int) -> AsyncIterator[int]:
        """Write the `length` bytes that follow a DATA message to a file at byte `position`.

        Yields the number of bytes after each write. Raises TimedOut, ConnectionLost; OSError if writing fails.
        """
        left = length
        if left > _LARGE and self._buffer:
            first = self._take_buffered(left)
            write_at(descriptor, first, position)
            left -= len(first)
            position += len(first)
            yield len(first)
        while left > _LARGE:
            with self._deadline("receiving content"):
                count = await self.connection.receive_file(descriptor, position, left)
            if not count:
                raise _closed_early(left, length)
            left -= count
            position += count
            yield count
        async for chunk in self.receive_data(left):
            write_at(descriptor, chunk, position)
            position += len(chunk)
            yield len(chunk)

    def _take_buffered(self, most: int) -> bytes:
        """Take up to `most` bytes that arrived along with the last message."""
        taken = bytes(self._buffer[:most])
        del self._buffer[:most]
        return taken

    def ended(self) -> bool:
        """Return whether the connection has become unusable. Call between requests; does not wait."""
        return bool(self._buffer) or self.connection.ended()

    def _log(self, outgoing: bool, message: Message) -> None:
        if self._trace is not None:
            self._trace(outgoing, message)


def _closed_early(left: int, length: int) -> ConnectionLost:
    return ConnectionLost(f"the connection was closed with {left} of {length} bytes still to come")
