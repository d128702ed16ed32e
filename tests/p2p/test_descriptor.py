"""A large file through a pipe: the kernel moves it, and all that holds for bytes that are copied holds for it too."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from cluster_remote.p2p import descriptor
from cluster_remote.p2p.descriptor import DescriptorConnection
from cluster_remote.p2p.errors import ConnectionLost, SourceError, TimedOut
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.messages import Invalid, Message, Valid
from cluster_remote.p2p.stream import MessageStream

pytestmark = pytest.mark.anyio

SIZE = 9_000_001
CONTENT = os.urandom(1000) * (SIZE // 1000) + b"x"


class Reader(threading.Thread):
    """Reads a pipe to its end, and calls `meanwhile` when it has so many bytes."""

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


class Pipe:
    """A stream into one end of a pipe, and the other end."""

    def __init__(self, timeout: float) -> None:
        self.end, writing = os.pipe()
        reading, self._unused = os.pipe()
        self.stream = MessageStream(DescriptorConnection(reading, writing), timeout)

    async def send(self, path: Path, offset: int = 0) -> bool:
        async with FileSource(os.fsencode(path)).read(offset) as reading:
            return await self.stream.send_data(reading, _verdict)

    async def sent(self, path: Path, meanwhile: Callable[[], None] = lambda: None, after: int = 1) -> bytes:
        """What comes out when a file is sent from byte 10 on."""
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


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe(timeout=20)
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def expected(content: bytes, verdict: bytes) -> bytes:
    return b"DATA %d\n" % (SIZE - 10) + content[10:] + verdict + b"\n"


async def test_a_large_file_comes_out_as_it_is(pipe: Pipe, file: Path) -> None:
    assert await pipe.sent(file) == expected(CONTENT, b"VALID")


async def test_on_a_file_system_that_cannot_do_it_too(pipe: Pipe, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", refuse)
    assert await pipe.sent(file) == expected(CONTENT, b"VALID")


async def test_where_no_larger_pipe_is_allowed_too(pipe: Pipe, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor, "_PIPE", -1)
    assert await pipe.sent(file) == expected(CONTENT, b"VALID")


@pytest.mark.parametrize("after", [1, SIZE // 2, SIZE - 2_000_000])
async def test_whatever_changes_before_the_peer_has_taken_it_is_not_valid(pipe: Pipe, file: Path, after: int) -> None:
    """Also what has been moved into the pipe already, which shows the file as it is when it is read."""

    def change() -> None:
        with file.open("r+b") as opened:
            opened.write(b"changed")

    received = await pipe.sent(file, change, after)
    assert received.endswith(b"INVALID\n")
    assert len(received) == len(expected(CONTENT, b"INVALID"))


async def test_what_is_said_to_be_valid_is_what_was_sent(pipe: Pipe, file: Path) -> None:
    """A change in the last moments comes too late, or it is noticed."""

    def change() -> None:
        file.write_bytes(b"y" * SIZE)

    received = await pipe.sent(file, change, SIZE - 100_000)
    assert received.endswith(b"INVALID\n") or received == expected(CONTENT, b"VALID")


async def test_a_file_that_becomes_shorter_is_an_error_of_the_source(pipe: Pipe, file: Path) -> None:
    with pytest.raises(SourceError, match="became shorter"):
        await pipe.sent(file, lambda: os.truncate(file, 5_000_000), 1)


async def test_a_peer_that_goes_away_is_a_connection_lost(file: Path) -> None:
    broken = Pipe(timeout=20)
    os.set_blocking(broken.end, True)

    def leave() -> None:
        os.read(broken.end, 100_000)
        os.close(broken.end)

    leaving = threading.Thread(target=leave)
    leaving.start()
    with pytest.raises(ConnectionLost):
        await broken.send(file)
    leaving.join()
    await broken.stream.connection.aclose(0)
    os.close(broken._unused)


async def test_a_peer_that_takes_nothing_is_given_up(file: Path) -> None:
    stalled = Pipe(timeout=0.5)
    try:
        with pytest.raises(TimedOut, match="while sending content"), anyio.fail_after(10):
            await stalled.send(file)
    finally:
        await stalled.stream.connection.aclose(0)
        stalled.close()


async def test_a_transfer_that_nobody_wants_any_more_ends_soon(file: Path) -> None:
    stalled = Pipe(timeout=60)
    try:
        with anyio.fail_after(10), anyio.move_on_after(0.3) as scope:
            await stalled.send(file)
        assert scope.cancelled_caught
    finally:
        await stalled.stream.connection.aclose(0)
        stalled.close()


# The other way


def feed(descriptor: int, content: bytes) -> threading.Thread:
    """Writes into a pipe or socket, and closes it."""

    def write() -> None:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.close(descriptor)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


async def received(reading: int, announced: int, file: Path, timeout: float = 20) -> None:
    """Receives a content into a file from byte 3 on, and is told how many bytes come."""
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


def ends(kind: str) -> tuple[int, int]:
    """Where to read, and where to write."""
    if kind == "pipe":
        return os.pipe()
    one, other = socket.socketpair()
    return one.detach(), other.detach()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("size", [0, 1, 300_000, SIZE])
async def test_a_content_is_written_where_it_belongs_and_no_byte_more(kind: str, size: int, tmp_path: Path) -> None:
    reading, writing = ends(kind)
    writer = feed(writing, CONTENT[:size] + b"VALID\n")
    await received(reading, size, tmp_path / "file")
    writer.join()
    assert (tmp_path / "file").read_bytes()[3:] == CONTENT[:size]


async def test_it_is_written_on_a_file_system_that_cannot_do_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "splice", refuse)
    reading, writing = os.pipe()
    writer = feed(writing, CONTENT + b"VALID\n")
    await received(reading, SIZE, tmp_path / "file")
    writer.join()
    assert (tmp_path / "file").read_bytes()[3:] == CONTENT


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_a_peer_that_ends_too_early_is_a_connection_lost(kind: str, tmp_path: Path) -> None:
    reading, writing = ends(kind)
    writer = feed(writing, CONTENT[: SIZE // 2])
    with pytest.raises(ConnectionLost, match=f"of {SIZE} bytes still to come"):
        await received(reading, SIZE, tmp_path / "file")
    writer.join()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_a_peer_that_sends_nothing_is_given_up(kind: str, tmp_path: Path) -> None:
    reading, writing = ends(kind)
    try:
        with pytest.raises(TimedOut, match="while receiving content"), anyio.fail_after(10):
            await received(reading, SIZE, tmp_path / "file", timeout=0.5)
    finally:
        os.close(writing)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_a_file_that_cannot_be_written_is_an_error_of_the_file(kind: str, tmp_path: Path) -> None:
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
