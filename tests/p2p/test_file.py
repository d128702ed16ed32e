"""A file as the source of uploads: its bytes from any offset, and whether they changed meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_remote.p2p.errors import BeyondTheEnd, SourceError
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.stream import CHUNK

pytestmark = pytest.mark.anyio


async def _read(source: FileSource, offset: int = 0) -> tuple[int, bytes, bool]:
    async with source.read(offset) as reading:
        content = b"".join([bytes(chunk) async for chunk in reading.chunks()])
        return reading.length, content, await reading.valid()


def _file(path: Path, content: bytes) -> FileSource:
    path.write_bytes(content)
    return FileSource(os.fsencode(path))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[FileSource, bytes]:
    content = os.urandom(2 * CHUNK + 100)
    return _file(tmp_path_factory.mktemp("large") / "f", content), content


@given(st.integers(0, 2 * CHUNK + 100) | st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 100]))
async def test_a_file_can_be_read_from_any_offset(large: tuple[FileSource, bytes], offset: int) -> None:
    source, content = large
    assert await _read(source, offset) == (len(content) - offset, content[offset:], True)


async def test_chunks_are_bounded(large: tuple[FileSource, bytes]) -> None:
    async with large[0].read(0) as reading:
        assert max([len(chunk) async for chunk in reading.chunks()]) == CHUNK


async def test_concurrent_readers_each_keep_their_own_pace(large: tuple[FileSource, bytes]) -> None:
    source, content = large
    assert source.repeatable
    found: dict[int, bytes] = {}

    async def read(offset: int) -> None:
        async with source.read(offset) as reading:
            parts = []
            async for chunk in reading.chunks():
                parts.append(bytes(chunk))
                await anyio.sleep(0.001 * (offset % 7))
            found[offset] = b"".join(parts)

    async with anyio.create_task_group() as group:
        for offset in (0, 1, 5, CHUNK, 2 * CHUNK):
            group.start_soon(read, offset)
    assert found == {offset: content[offset:] for offset in found}
    assert len(found) == 5


@pytest.mark.parametrize("name", [b"with space", b"-dash", b"latin1\xff", b"new\nline", b"'quote\""])
async def test_a_file_of_any_name_is_read(tmp_path: Path, name: bytes) -> None:
    assert await _read(_file(tmp_path / os.fsdecode(name), b"abc")) == (3, b"abc", True)


async def test_an_empty_file_is_read(tmp_path: Path) -> None:
    assert await _read(_file(tmp_path / "f", b"")) == (0, b"", True)


async def test_a_link_is_followed(tmp_path: Path) -> None:
    _file(tmp_path / "f", b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "f")
    assert await _read(FileSource(os.fsencode(tmp_path / "link"))) == (3, b"abc", True)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
    ids=["nothing", "directory", "named pipe", "endless link"],
)
async def test_an_unreadable_file_is_a_source_error_that_names_it(tmp_path: Path, make: object, complaint: str) -> None:
    assert callable(make)
    make(tmp_path / "it's here")
    with anyio.fail_after(5):
        with pytest.raises(SourceError, match=f"it's here.*{complaint}"):
            await _read(FileSource(os.fsencode(tmp_path / "it's here")))


async def test_an_offset_beyond_the_end_is_a_peer_error(tmp_path: Path) -> None:
    with pytest.raises(BeyondTheEnd, match="has 3 bytes, but the peer claims to have 4 already"):
        await _read(_file(tmp_path / "f", b"abc"), 4)


async def test_a_small_file_is_read_once_for_all_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little of it is cached."""
    source = _file(tmp_path / "f", b"abcdef")
    asked: list[int] = []

    def two_at_most(descriptor: int, buffer: memoryview, position: int) -> int:
        asked.append(position)
        return os.preadv(descriptor, [buffer[:2]], position)

    monkeypatch.setattr("cluster_remote.p2p.file._read_cached", two_at_most)
    found: list[tuple[int, bytes, bool]] = []

    async def read(offset: int) -> None:
        found.append(await _read(source, offset))

    async with anyio.create_task_group() as group:
        for offset in (0, 2, 5):
            group.start_soon(read, offset)
    assert found == [(6, b"abcdef", True), (4, b"cdef", True), (1, b"f", True)]
    assert asked == [0, 2, 4]


async def test_a_small_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    source = _file(tmp_path / "f", b"abc")
    os.utime(tmp_path / "f", ns=(1, 1))
    assert await _read(source) == (3, b"abc", True)
    (tmp_path / "f").write_bytes(b"xyz")
    os.utime(tmp_path / "f", ns=(2, 2))
    assert await _read(source) == (3, b"xyz", True)


async def test_a_small_file_that_shrinks_is_a_source_error(tmp_path: Path) -> None:
    source = _file(tmp_path / "f", b"abc")
    async with source.read(0) as reading:
        os.truncate(tmp_path / "f", 2)
        with pytest.raises(SourceError, match="was truncated while it was being read"):
            assert [bytes(chunk) async for chunk in reading.chunks()]


async def test_a_file_that_shrinks_is_a_source_error(tmp_path: Path) -> None:
    source = _file(tmp_path / "f", b"x" * (CHUNK + 10))
    async with source.read(0) as reading:
        chunks = aiter(reading.chunks())
        assert len(await anext(chunks)) == CHUNK
        os.truncate(tmp_path / "f", 100)
        with pytest.raises(SourceError, match="was truncated while it was being read"):
            await anext(chunks)


@pytest.mark.parametrize(("content", "time"), [(b"abcdef", 1), (b"abd", 2), (b"abcdef", 2)])
async def test_a_file_that_changes_meanwhile_is_invalid_and_no_longer_than_announced(
    tmp_path: Path, content: bytes, time: int
) -> None:
    source = _file(tmp_path / "f", b"abc")
    os.utime(tmp_path / "f", ns=(1, 1))
    async with source.read(0) as reading:
        (tmp_path / "f").write_bytes(content)
        os.utime(tmp_path / "f", ns=(time, time))
        assert b"".join([bytes(chunk) async for chunk in reading.chunks()]) == content[:3]
        assert not await reading.valid()


async def test_every_descriptor_is_closed_whatever_happens(tmp_path: Path) -> None:
    def count() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    source = _file(tmp_path / "f", b"abc")
    before = count()
    await _read(source)
    with pytest.raises(BeyondTheEnd):
        await _read(source, 4)
    with pytest.raises(SourceError):
        await _read(FileSource(os.fsencode(tmp_path)))
    with anyio.CancelScope() as scope:
        async with source.read(0):
            scope.cancel()
            await anyio.sleep(1)
    assert count() == before
