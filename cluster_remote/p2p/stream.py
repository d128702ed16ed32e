"""Lines and DATA over a connection, with deadlines and limits.

A deadline here is always about progress: it starts anew with every byte of DATA that moves, so a slow peer is
served for as long as it takes and a stalled one is given up. A line has to arrive as a whole within the
deadline.
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

__all__ = ["CHUNK", "LARGE_CHUNK", "MAX_LINE", "Connection", "MessageStream", "Portions", "Trace"]

# Longer than any line that the protocol has a use for: a key is a file name, a list of UUIDs is short.
MAX_LINE = 64 * 1024
# How much is read or written at once, in bytes.
CHUNK = 256 * 1024
# How much is read at once of a large content while others are at work on what was read before, in bytes; where there
# are several of these, of all together.
LARGE_CHUNK = 4 * 1024 * 1024
# A content of up to this many bytes goes out together with its DATA and VALID, in one write; but what comes from a
# slow source is not held back for longer than these seconds, or the peer would take us for dead.
_SMALL = 256 * 1024
_HELD = 0.25

# Seconds that others may take for what was read of a large content before more is read.
_PORTION_SECONDS = 0.25

# From this many bytes on a file is sent by the kernel, where it can: less is not worth a thread.
_LARGE = 4 * 1024 * 1024

# How many contents are received ahead at the moment, in all of the process: they share the memory for it.
_ahead = 0

# Called with True for a message that goes out, False for one that came in.
Trace = Callable[[bool, Message], None]


class Connection(ABC):
    """Bytes both ways, as the protocol needs them. One reader and one writer at a time."""

    @abstractmethod
    async def receive(self, max_bytes: int) -> bytes:
        """Between 1 and `max_bytes` bytes; none at the end of the stream. Raises ConnectionLost."""

    async def receive_much(self, length: int) -> bytes | memoryview:
        """As `receive`, of a content of which much more is to come: rather many bytes than the first ones soon."""
        return await self.receive(min(length, CHUNK))

    @abstractmethod
    async def send_some(self, data: memoryview) -> int:
        """Sends a part of `data`, waiting until at least one byte can go. How many went. Raises ConnectionLost."""

    def copied_last(self) -> int | None:
        """How many bytes at the end of a file have to be sent by `send_some`; None where all of it has to be.

        What `send_file` sends is read by the peer from the file itself, as late as that: only when the peer has taken
        all of it can be told whether the file has changed meanwhile. What is sent behind it sees to that.
        """
        return None

    async def send_file(self, descriptor: int, offset: int, length: int) -> int:
        """Sends a part of a file as it lies there, at most `length` bytes. How many went; none at the file's end.

        Waits until at least one byte can go. Raises ConnectionLost; OSError where the file cannot be read.
        """
        raise NotImplementedError

    async def receive_file(self, descriptor: int, position: int, length: int) -> int:
        """Receives into a file, from byte `position` on, at least one byte and at most `length`; none at the end.

        How many it were. Raises ConnectionLost; OSError where the file cannot be written.
        """
        data = await self.receive(min(length, CHUNK))
        write_at(descriptor, data, position)
        return len(data)

    @abstractmethod
    def ended(self) -> bool:
        """Whether the peer closed the connection or sent something unasked while nobody was reading.

        Does not wait, and takes nothing off a connection that is still good.
        """

    @abstractmethod
    async def aclose(self, patience: float) -> None:
        """Closes, and ends what is behind it; after `patience` seconds by force. Never raises."""

    async def last_words(self) -> str:
        """What the other side said outside of the protocol (standard error), as one line; often nothing."""
        return ""


class Portions:
    """How much of a large content is read at once: what others take in a quarter of a second.

    While they are at work on it nothing is read, and the peer sees no progress; so it must not be much where they are
    slow. What they may put by before they are at work on it (`LARGE_CHUNK`) says nothing of how fast they are.
    """

    def __init__(self) -> None:
        self._portion = CHUNK
        self._taken = 0

    def next(self, most: int) -> int:
        """How much to read, in bytes; `most` is what there is memory for."""
        return max(CHUNK, min(self._portion, most))

    def taken(self, count: int, seconds: float) -> None:
        """So many bytes have been taken, which took so long."""
        self._taken += count
        if self._taken > 2 * LARGE_CHUNK:
            # By the last of them alone: whoever has become slow must not be given much once more.
            affordable = _PORTION_SECONDS * count / seconds if seconds else math.inf
            self._portion = int(min(2 * self._portion, max(affordable, CHUNK), LARGE_CHUNK))


class _Deadline:
    """Raises TimedOut where no progress is made. A class, for it is entered for every message, and this is quicker."""

    def __init__(self, seconds: float, doing: str) -> None:
        self._seconds = seconds
        self._doing = doing

    def __enter__(self) -> anyio.CancelScope:
        self._scope = anyio.CancelScope(deadline=anyio.current_time() + self._seconds)
        return self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, trace)
        if self._scope.cancelled_caught:
            raise TimedOut(f"no progress for {self._seconds:.3g} seconds while {self._doing}") from None


class MessageStream:
    """Messages over a connection. `timeout` is in seconds without progress."""

    def __init__(self, connection: Connection, timeout: float, trace: Trace | None = None) -> None:
        self.connection = connection
        self.timeout = timeout
        self._trace = trace
        self._buffer = bytearray()
        # How far the buffer has been searched for a newline: keeps reading a line linear in its length.
        self._searched = 0

    def _deadline(self, doing: str, patience: float = 0) -> _Deadline:
        return _Deadline(self.timeout + patience, doing)

    async def send(self, *messages: Message) -> None:
        """Sends messages together. Raises TimedOut, ConnectionLost."""
        for message in messages:
            self._log(True, message)
        await self._send_all(memoryview(b"".join(map(serialise, messages))), "sending a message")

    async def _send_all(self, data: memoryview, doing: str) -> None:
        sent = 0
        with self._deadline(doing) as scope:
            while sent < len(data):
                sent += await self.connection.send_some(data[sent:])
                scope.deadline = anyio.current_time() + self.timeout

    async def receive(self, doing: str = "waiting for an answer", patience: float = 0) -> Message:
        """The next message. `patience` seconds are granted on top of the timeout.

        Raises TimedOut, ConnectionLost (also at the end of the stream), ProtocolError.
        """
        if self._buffer.find(b"\n", self._searched) >= 0:
            # No deadline for what is here already: setting one costs several times what reading a line does.
            line = await self._line(doing)
        else:
            with self._deadline(doing, patience):
                line = await self._line(doing)
        try:
            message = parse(line)
        except MalformedMessage as error:
            raise ProtocolError(f"bad message while {doing}: {error}") from None
        self._log(False, message)
        return message

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
        """Sends DATA, the content, and the messages that `after` makes of its validity. Gives the validity.

        The content decides how long it takes to be read; the deadline is for the peer alone.
        Raises SourceError when the source does not keep to its length: the connection cannot be used any more.
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
            # The file may only be judged when the rest has been sent: till then the peer has not read what came before.
            held_until = 0
        async for chunk in reading.chunks():
            left -= len(chunk)
            if left < 0:
                raise SourceError("there is more content than announced")
            if len(pending) + len(chunk) <= _SMALL and anyio.current_time() < held_until:
                pending += chunk
                continue
            if pending:
                await self._send_all(memoryview(pending), "sending content")
                pending = bytearray()
            await self._send_all(memoryview(chunk), "sending content")
        if left:
            raise SourceError(f"the content ended {left} bytes too early")
        valid = await reading.valid()
        messages = after(valid)
        for message in messages:
            self._log(True, message)
        pending += b"".join(map(serialise, messages))
        await self._send_all(memoryview(pending), "sending content")
        return valid

    async def _send_file(self, reading: SourceReading, length: int) -> int:
        """Sends the first `length` bytes of a reading from its file. How many these were."""
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
        """The `length` bytes after a DATA message. Raises TimedOut, ConnectionLost."""
        left = length
        if left and self._buffer:
            chunk = self._take_buffered(left)
            left -= len(chunk)
            yield chunk
        while left:
            with self._deadline("receiving content"):
                chunk = await self.connection.receive(min(left, CHUNK))
            if not chunk:
                raise _closed_within(left, length)
            left -= len(chunk)
            yield chunk

    async def receive_ahead(self, length: int) -> AsyncGenerator[bytes | memoryview, None]:
        """As `receive_data`; a large content in large parts, each of which stays as it is. See `LARGE_CHUNK`."""
        global _ahead
        left, portions = length, Portions()
        _ahead += 1
        try:
            if left > _LARGE and self._buffer:
                first = self._take_buffered(left)
                left -= len(first)
                yield first
            while left > _LARGE:
                with self._deadline("receiving content"):
                    chunk = await self.connection.receive_much(min(left, portions.next(LARGE_CHUNK // _ahead)))
                if not chunk:
                    raise _closed_within(left, length)
                left -= len(chunk)
                given = anyio.current_time()
                yield chunk
                portions.taken(len(chunk), anyio.current_time() - given)
        finally:
            _ahead -= 1
        async for rest in self.receive_data(left):
            yield rest

    async def receive_into(self, length: int, descriptor: int, position: int) -> AsyncIterator[int]:
        """Writes the `length` bytes after a DATA message into a file, from byte `position` on.

        Yields how many have been written each time. Raises TimedOut, ConnectionLost; OSError where that fails.
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
                raise _closed_within(left, length)
            left -= count
            position += count
            yield count
        async for chunk in self.receive_data(left):
            write_at(descriptor, chunk, position)
            position += len(chunk)
            yield len(chunk)

    def _take_buffered(self, most: int) -> bytes:
        """What came together with the last message, at most so many bytes."""
        taken = bytes(self._buffer[:most])
        del self._buffer[:most]
        return taken

    def ended(self) -> bool:
        """Whether the connection can be used no more, seen between two requests. Does not wait."""
        return bool(self._buffer) or self.connection.ended()

    def _log(self, outgoing: bool, message: Message) -> None:
        if self._trace is not None:
            self._trace(outgoing, message)


def _closed_within(left: int, length: int) -> ConnectionLost:
    return ConnectionLost(f"the connection was closed with {left} of {length} bytes still to come")
