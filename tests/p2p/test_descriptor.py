"""Large contents through a pipe or a unix socket, moved by threads and the kernel.

All that holds for bytes that the event loop copies holds for it too.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_remote.p2p import descriptor
from cluster_remote.p2p.descriptor import DescriptorConnection
from cluster_remote.p2p.errors import ConnectionLost, SourceError, TimedOut
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.messages import Data, Invalid, Message, Valid
from cluster_remote.p2p.session import SourceReading
from cluster_remote.p2p.stream import CHUNK, LARGE_CHUNK, MessageStream, Portions
from tests.p2p.memory import MemoryConnection

pytestmark = pytest.mark.anyio

SIZE = 9_000_001
CONTENT = os.urandom(1000) * (SIZE // 1000) + b"x"


class Reader(threading.Thread):
    """Read a pipe to its end, and call `meanwhile` after so many bytes."""

    def __init__(self, pipe: int, meanwhile: Callable[[], None], after: int) -> None:
        super().__init__(daemon=True)
        self.received = b""
        self._pipe = pipe
        self._meanwhile = meanwhile
        self._after = after
        self.start()

    def run(self) -> None:
        parts: list[bytes] = []
        count = 0
        while data := os.read(self._pipe, 1 << 16):
            if count < self._after <= count + len(data):
                self._meanwhile()
            count += len(data)
            parts.append(data)
        self.received = b"".join(parts)


def ends(kind: str) -> tuple[int, int]:
    """Return a descriptor to read from and one to write to."""
    if kind == "pipe":
        return os.pipe()
    one, other = socket.socketpair()
    return one.detach(), other.detach()


class Pipe:
    """A stream into one end of a pipe or of a pair of sockets, and the other end."""

    def __init__(self, kind: str, timeout: float) -> None:
        self.end, writing = ends(kind)
        reading, self._unused = os.pipe()
        self.stream = MessageStream(DescriptorConnection(reading, writing), timeout)

    async def send(self, path: Path, offset: int = 0) -> bool:
        async with FileSource(os.fsencode(path)).read(offset) as reading:
            return await self.stream.send_data(reading, _verdict)

    async def sent(self, path: Path, meanwhile: Callable[[], None] = lambda: None, after: int = 1) -> bytes:
        """Send a file from byte 10 on, and return what arrives."""
        reader = Reader(self.end, meanwhile, after)
        try:
            await self.send(path, 10)
        finally:
            await self.stream.connection.aclose(0)
            await anyio.to_thread.run_sync(reader.join)
        return reader.received

    def close(self) -> None:
        os.close(self.end)
        os.close(self._unused)


def _verdict(valid: bool) -> list[Message]:
    return [Valid() if valid else Invalid()]


@pytest.fixture(params=["pipe", "socket"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pipe(kind: str) -> Iterator[Pipe]:
    made = Pipe(kind, timeout=20)
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def expected(content: bytes, verdict: bytes) -> bytes:
    return b"DATA %d\n" % (SIZE - 10) + content[10:] + verdict + b"\n"


async def test_a_large_file_is_sent_unchanged(pipe: Pipe, file: Path) -> None:
    assert await pipe.sent(file) == expected(CONTENT, b"VALID")


async def test_the_kernel_does_the_sending(pipe: Pipe, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    sendfile = os.sendfile

    def count(*arguments: int) -> int:
        sent.append(sendfile(*arguments))
        return sent[-1]

    monkeypatch.setattr(os, "sendfile", count)
    assert await pipe.sent(file) == expected(CONTENT, b"VALID")
    assert sum(sent) > SIZE * 0.8


async def test_sending_works_on_a_file_system_without_sendfile(
    pipe: Pipe, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", refuse)
    assert await pipe.sent(file) == expected(CONTENT, b"VALID")


async def test_sending_works_without_a_larger_pipe(pipe: Pipe, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor, "_PIPE", -1)
    assert await pipe.sent(file) == expected(CONTENT, b"VALID")


@pytest.mark.parametrize("after", [1, SIZE // 2, SIZE - 2_000_000])
async def test_content_that_changes_before_the_peer_has_taken_it_is_invalid(pipe: Pipe, file: Path, after: int) -> None:
    """This includes bytes already in the pipe, which show the file as it is when they are read."""

    def change() -> None:
        with file.open("r+b") as opened:
            opened.write(b"changed")

    received = await pipe.sent(file, change, after)
    assert received.endswith(b"INVALID\n")
    assert len(received) == len(expected(CONTENT, b"INVALID"))


async def test_content_declared_valid_is_what_was_sent(pipe: Pipe, file: Path) -> None:
    """A change in the last moments is either too late or noticed."""

    def change() -> None:
        # When all of it is on its way; and in its place, so that what the kernel has not copied changes too.
        time.sleep(0.05)
        with file.open("r+b") as opened:
            opened.write(b"y" * SIZE)

    received = await pipe.sent(file, change, SIZE - 100_000)
    assert received.endswith(b"INVALID\n") or received == expected(CONTENT, b"VALID")


async def test_content_is_copied_whole_if_the_pipe_may_hold_all_of_it(
    pipe: Pipe, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DescriptorConnection, "copied_last", lambda _connection: 2 * SIZE)
    assert await pipe.sent(file) == expected(CONTENT, b"VALID")


async def test_a_file_that_shrinks_is_a_source_error(pipe: Pipe, file: Path) -> None:
    with pytest.raises(SourceError, match="was truncated"):
        await pipe.sent(file, lambda: os.truncate(file, 5_000_000), 1)


def leave(end: int) -> threading.Thread:
    """A peer that reads a little and disconnects."""

    def read_and_close() -> None:
        os.read(end, 100_000)
        os.close(end)

    thread = threading.Thread(target=read_and_close)
    thread.start()
    return thread


async def test_a_peer_that_disconnects_while_we_send_is_a_lost_connection(kind: str, file: Path) -> None:
    broken = Pipe(kind, timeout=20)
    leaving = leave(broken.end)
    with pytest.raises(ConnectionLost):
        await broken.send(file)
    leaving.join()
    await broken.stream.connection.aclose(0)
    os.close(broken._unused)


async def test_a_peer_that_takes_nothing_times_out(kind: str, file: Path) -> None:
    stalled = Pipe(kind, timeout=0.5)
    try:
        with pytest.raises(TimedOut, match="while sending content"), anyio.fail_after(10):
            await stalled.send(file)
    finally:
        await stalled.stream.connection.aclose(0)
        stalled.close()


async def test_a_cancelled_transfer_ends_soon(kind: str, file: Path) -> None:
    stalled = Pipe(kind, timeout=60)
    try:
        with anyio.fail_after(10), anyio.move_on_after(0.3) as scope:
            await stalled.send(file)
        assert scope.cancelled_caught
    finally:
        await stalled.stream.connection.aclose(0)
        stalled.close()


# The other way


def feed(descriptor: int, content: bytes) -> threading.Thread:
    """Write into a pipe or socket, and close it."""

    def write() -> None:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.close(descriptor)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


async def received(reading: int, announced: int, file: Path, timeout: float = 20) -> None:
    """Receive a content of announced length into a file from byte 3 on."""
    stream = MessageStream(DescriptorConnection(reading, os.open(os.devnull, os.O_WRONLY)), timeout)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    told = 0
    try:
        async for count in stream.receive_into(announced, descriptor, 3):
            told += count
        # What comes after the content is left for the next message.
        assert (await stream.receive()) == Valid()
    finally:
        os.close(descriptor)
        await stream.connection.aclose(0)
    assert told == announced


@pytest.mark.parametrize("size", [0, 1, 300_000, SIZE])
async def test_content_is_written_at_its_offset_without_extra_bytes(kind: str, size: int, tmp_path: Path) -> None:
    reading, writing = ends(kind)
    writer = feed(writing, CONTENT[:size] + b"VALID\n")
    await received(reading, size, tmp_path / "file")
    writer.join()
    assert (tmp_path / "file").read_bytes()[3:] == CONTENT[:size]


async def test_receiving_works_on_a_file_system_without_splice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "splice", refuse)
    reading, writing = os.pipe()
    writer = feed(writing, CONTENT + b"VALID\n")
    await received(reading, SIZE, tmp_path / "file")
    writer.join()
    assert (tmp_path / "file").read_bytes()[3:] == CONTENT


async def test_a_peer_that_ends_early_is_a_lost_connection(kind: str, tmp_path: Path) -> None:
    reading, writing = ends(kind)
    writer = feed(writing, CONTENT[: SIZE // 2])
    with pytest.raises(ConnectionLost, match=f"of {SIZE} bytes still to come"):
        await received(reading, SIZE, tmp_path / "file")
    writer.join()


async def test_a_peer_that_sends_nothing_times_out(kind: str, tmp_path: Path) -> None:
    reading, writing = ends(kind)
    try:
        with pytest.raises(TimedOut, match="while receiving content"), anyio.fail_after(10):
            await received(reading, SIZE, tmp_path / "file", timeout=0.5)
    finally:
        os.close(writing)


async def test_an_unwritable_file_is_an_error_of_the_file(kind: str, tmp_path: Path) -> None:
    reading, writing = ends(kind)
    os.write(writing, b"x" * 1000)
    connection = DescriptorConnection(reading, os.open(os.devnull, os.O_WRONLY))
    descriptor = os.open(tmp_path / "file", os.O_RDONLY | os.O_CREAT)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            await connection.receive_file(descriptor, 0, SIZE)
    finally:
        os.close(descriptor)
        os.close(writing)
        await connection.aclose(0)


# In memory


async def test_content_in_memory_is_sent_unchanged(pipe: Pipe) -> None:
    reader = Reader(pipe.end, lambda: None, 1)
    try:
        await pipe.stream.send_data(MemoryReading(CONTENT), _verdict)
    finally:
        await pipe.stream.connection.aclose(0)
        await anyio.to_thread.run_sync(reader.join)
    assert reader.received == b"DATA %d\n" % SIZE + CONTENT + b"VALID\n"


class MemoryReading(SourceReading):
    """A content in one piece."""

    def __init__(self, content: bytes) -> None:
        self.length = len(content)
        self._content = content

    async def chunks(self) -> AsyncIterator[memoryview]:
        yield memoryview(self._content)

    async def valid(self) -> bool:
        return True


async def test_a_peer_that_takes_nothing_from_memory_times_out(kind: str) -> None:
    stalled = Pipe(kind, timeout=0.5)
    try:
        with pytest.raises(TimedOut, match="while sending content"), anyio.fail_after(10):
            await stalled.stream.send_data(MemoryReading(CONTENT), _verdict)
    finally:
        await stalled.stream.connection.aclose(0)
        stalled.close()


async def test_a_peer_that_disconnects_while_we_send_from_memory_is_a_lost_connection(kind: str) -> None:
    broken = Pipe(kind, timeout=20)
    leaving = leave(broken.end)
    with pytest.raises(ConnectionLost):
        await broken.stream.send_data(MemoryReading(CONTENT), _verdict)
    leaving.join()
    await broken.stream.connection.aclose(0)
    os.close(broken._unused)


async def read_ahead(reading: int, announced: int, timeout: float = 20) -> list[bytes | memoryview]:
    """Return the parts in which a content is read ahead, including bytes that came with the preceding message."""
    stream = MessageStream(DescriptorConnection(reading, os.open(os.devnull, os.O_WRONLY)), timeout)
    try:
        assert await stream.receive() == Data(announced)
        parts = [part async for part in stream.receive_ahead(announced)]
        assert (await stream.receive()) == Valid()
        return parts
    finally:
        await stream.connection.aclose(0)


async def test_a_short_read_keeps_no_memory_for_missing_bytes(kind: str) -> None:
    reading, writing = ends(kind)
    connection = DescriptorConnection(reading, os.open(os.devnull, os.O_WRONLY))
    os.write(writing, b"x" * 20_000)
    part = memoryview(await connection.receive_much(LARGE_CHUNK))
    assert part == b"x" * 20_000
    assert len(memoryview(part.obj)) == 20_000
    os.close(writing)
    await connection.aclose(0)


@pytest.mark.parametrize("size", [0, 1, 300_000, LARGE_CHUNK, LARGE_CHUNK + 1, SIZE, 2 * SIZE])
async def test_content_read_ahead_is_what_was_sent_without_extra_bytes(kind: str, size: int) -> None:
    reading, writing = ends(kind)
    content = (CONTENT + CONTENT)[:size]
    writer = feed(writing, b"DATA %d\n" % size + content + b"VALID\n")
    parts = await read_ahead(reading, size)
    writer.join()
    assert b"".join(parts) == content
    assert all(memoryview(part).readonly for part in parts)
    assert max(map(len, parts), default=0) <= LARGE_CHUNK


async def test_concurrent_read_ahead_shares_its_memory() -> None:
    asked: list[int] = []

    class Endless(MemoryConnection):
        async def receive_much(self, length: int) -> bytes:
            await anyio.lowlevel.checkpoint()
            asked.append(length)
            return bytes(length)

    async def read(count: int) -> None:
        contents = [MessageStream(Endless(), 5.0).receive_ahead(2**40) for _ in range(count)]
        for _ in range(50):
            for content in contents:
                await anext(content)
        for content in contents:
            await content.aclose()

    await read(4)
    assert max(asked) == LARGE_CHUNK // 4
    asked.clear()
    await read(1)
    assert max(asked) == LARGE_CHUNK


@given(rates=st.lists(st.integers(1, 10**10), min_size=1, max_size=60), most=st.integers(1, LARGE_CHUNK))
def test_a_read_is_at_most_what_was_consumed_in_a_quarter_second_above_a_minimum(rates: list[int], most: int) -> None:
    portions, taken = Portions(), 0
    for rate in rates:
        portion = portions.next(most)
        assert CHUNK <= portion <= max(most, CHUNK)
        portions.taken(portion, portion / rate)
        taken += portion
        if taken > 2 * LARGE_CHUNK:
            assert portions.next(LARGE_CHUNK) <= max(CHUNK, rate / 4)
        else:
            assert portions.next(LARGE_CHUNK) == CHUNK


def test_a_fast_consumer_gets_reads_as_large_as_the_memory_allows() -> None:
    portions = Portions()
    for _ in range(40):
        portions.taken(portions.next(LARGE_CHUNK), 0)
    assert portions.next(LARGE_CHUNK) == LARGE_CHUNK


async def test_a_peer_that_ends_during_read_ahead_is_a_lost_connection(kind: str) -> None:
    reading, writing = ends(kind)
    writer = feed(writing, b"DATA %d\n" % SIZE + CONTENT[: SIZE // 3])
    with pytest.raises(ConnectionLost, match=f"of {SIZE} bytes still to come"):
        await read_ahead(reading, SIZE)
    writer.join()


async def test_a_peer_that_sends_nothing_during_read_ahead_times_out(kind: str) -> None:
    reading, writing = ends(kind)
    os.write(writing, b"DATA %d\n" % SIZE)
    try:
        with pytest.raises(TimedOut, match="while receiving content"), anyio.fail_after(10):
            await read_ahead(reading, SIZE, timeout=0.5)
    finally:
        os.close(writing)
