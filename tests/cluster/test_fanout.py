"""Every node receives exactly its bytes, once, in order, whatever the sizes, offsets and chunk boundaries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import accumulate, pairwise

import anyio
import anyio.lowlevel
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster_remote.cluster.fanout import Share, SlowestProgress, distribute, pieces, wanted
from cluster_remote.p2p.errors import SourceError
from cluster_remote.p2p.session import SourceReading

pytestmark = pytest.mark.anyio


class Chunks(SourceReading):
    """A content in given chunks, all through the same memory, like a receive buffer."""

    def __init__(self, chunks: Sequence[bytes], *, valid: bool = True, announced: int | None = None) -> None:
        self.length = sum(map(len, chunks)) if announced is None else announced
        self.asked = 0
        self._chunks = chunks
        self._valid = valid

    async def chunks(self) -> AsyncIterator[memoryview]:
        for chunk in self._chunks:
            self.asked += 1
            memory = bytearray(chunk)
            yield memoryview(memory)
            memory[:] = bytes(len(memory))

    async def valid(self) -> bool:
        return self._valid


async def take(share: Share, pauses: int = 0, offset: int | None = None) -> tuple[bytes, bool]:
    async with share.read(share.offset if offset is None else offset) as reading:
        received = b""
        async for chunk in reading.chunks():
            received += chunk
            for _ in range(pauses):
                await anyio.lowlevel.checkpoint()
        assert len(received) == reading.length
        return received, await reading.valid()


Taker = tuple[Share, Callable[[Share], Awaitable[object]]]


async def share_out(reading: SourceReading, start: int, takers: Sequence[Taker]) -> tuple[object, list[object]]:
    """Return what `distribute` and every taker return or raise."""
    results: list[object] = [None] * len(takers)
    outcome: object = None

    async def run(number: int, share: Share, action: Callable[[Share], Awaitable[object]]) -> None:
        try:
            results[number] = await action(share)
        except SourceError as error:
            results[number] = str(error)

    async with anyio.create_task_group() as tasks:
        for number, (share, action) in enumerate(takers):
            tasks.start_soon(run, number, share, action)
        try:
            outcome = await distribute(reading, start, [share for share, _ in takers])
        except SourceError as error:
            outcome = str(error)
    return outcome, results


def taker(share: Share, pauses: int = 0, offset: int | None = None) -> Taker:
    return share, lambda share: take(share, pauses, offset)


contents = st.binary(max_size=60)
cuts = st.lists(st.integers(0, 60), max_size=8)


def cut(content: bytes, at: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(min(edge, len(content)) for edge in at), len(content)]
    return [content[a:b] for a, b in pairwise(edges)]


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 250))
@example(10, 5, 0)
@example(10, 5, 10)
@example(10, 5, 12)
@example(10, 5, 15)
@example(10, 5, 16)
def test_a_node_takes_a_chunks_bytes_from_its_offset(position: int, length: int, offset: int) -> None:
    numbers = range(position, position + length)
    assert list(numbers[wanted(position, length, offset)]) == [n for n in numbers if n >= offset]


@given(contents, cuts, st.integers(0, 60))
def test_the_parts_of_all_chunks_are_exactly_what_the_node_lacks(content: bytes, at: list[int], offset: int) -> None:
    chunks = cut(content, at)
    starts = accumulate((len(chunk) for chunk in chunks), initial=0)
    parts = [c[wanted(p, len(c), offset)] for c, p in zip(chunks, starts, strict=False)]
    assert b"".join(parts) == content[offset:]


@given(st.binary(max_size=50), st.integers(1, 20), st.booleans())
def test_pieces_are_bounded_and_independent_of_the_chunks_buffer(content: bytes, most: int, reused: bool) -> None:
    memory = bytearray(content)
    made = list(pieces(memoryview(memory) if reused else content, most))
    memory[:] = bytes(len(memory))
    assert b"".join(made) == content
    assert all(0 < len(piece) <= most for piece in made)


@given(
    content=contents,
    at=cuts,
    start=st.integers(0, 30),
    nodes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3)), min_size=1, max_size=6),
    limit=st.integers(1, 40),
    valid=st.booleans(),
)
@example(content=b"abc", at=[1], start=0, nodes=[(0, 0), (1, 2), (2, 0), (3, 1)], limit=1, valid=True)
@example(content=b"", at=[], start=5, nodes=[(0, 0)], limit=1, valid=True)
def test_every_node_receives_its_bytes_in_order_and_the_verdict(
    content: bytes, at: list[int], start: int, nodes: list[tuple[int, int]], limit: int, valid: bool
) -> None:
    end = start + len(content)
    offsets = [start + min(offset, len(content)) for offset, _ in nodes]
    takers = [taker(Share(offset, end, limit), pauses) for offset, (_, pauses) in zip(offsets, nodes, strict=True)]
    complete, results = anyio.run(share_out, Chunks(cut(content, at), valid=valid), start, takers)
    assert complete
    assert results == [(content[offset - start :], valid) for offset in offsets]


@given(contents, st.integers(0, 20), st.integers(0, 70))
@example(b"123456789", 0, 6)
@example(b"123456789", 0, 9)
def test_a_node_may_start_later_than_it_announced(content: bytes, announced: int, later: int) -> None:
    offset = min(announced, len(content))
    begin = min(offset + later, len(content))
    takers = [taker(Share(offset, len(content), 8), offset=begin)]
    _, results = anyio.run(share_out, Chunks(cut(content, [3, 5, 20])), 0, takers)
    assert results == [(content[begin:], True)]


async def test_a_node_whose_offset_exceeds_the_content_gets_nothing() -> None:
    with pytest.raises(SourceError, match="has 5 bytes, but the node claims to have 6"):
        Share(6, 5)


async def test_the_slowest_node_sets_the_pace_once_its_buffer_is_full() -> None:
    source = Chunks([b"x" * 10] * 100)
    fast, slow = Share(0, 1000, 30), Share(0, 1000, 30)
    taken = 0

    async def slowly(share: Share) -> None:
        nonlocal taken
        async with share.read(0) as reading:
            async for chunk in reading.chunks():
                # What was read from the source waits in the buffer, save what was taken and what is about to go in.
                assert 10 * source.asked <= taken + 30 + 10 + 10
                await anyio.lowlevel.checkpoint()
                taken += len(chunk)
            await reading.valid()

    async def quickly(share: Share) -> bytes:
        return (await take(share))[0]

    complete, results = await share_out(source, 0, [(fast, quickly), (slow, slowly)])
    assert complete
    assert taken == 1000
    assert results[0] == b"x" * 1000


async def test_a_node_that_quits_delays_nobody_and_gets_nothing_more() -> None:
    source = Chunks([b"x" * 10] * 50)

    async def gives_up(share: Share) -> str:
        async with share.read(0) as reading:
            async for _ in reading.chunks():
                return "gone"
        return "unreachable"

    async def quickly(share: Share) -> int:
        return len((await take(share))[0])

    complete, results = await share_out(source, 0, [(Share(0, 500, 10), gives_up), (Share(0, 500, 10), quickly)])
    assert complete
    assert results == ["gone", 500]


async def test_the_source_is_no_longer_read_when_no_node_is_left() -> None:
    source = Chunks([b"x" * 10] * 50)

    async def gives_up(share: Share) -> None:
        async with share.read(0):
            return

    complete, _ = await share_out(source, 0, [(Share(0, 500, 10), gives_up)] * 2)
    assert not complete
    assert source.asked < 10


class Broken(Chunks):
    async def chunks(self) -> AsyncIterator[memoryview]:
        async for chunk in super().chunks():
            yield chunk
        raise SourceError("the disk is gone")


async def test_a_source_error_reaches_every_node_and_the_caller() -> None:
    source = Broken([b"x" * 10] * 3, announced=40)
    outcome, results = await share_out(source, 0, [taker(Share(0, 40)), taker(Share(10, 40))])
    assert outcome == "the disk is gone"
    assert results == ["the disk is gone"] * 2


@pytest.mark.parametrize("announced", [29, 31])
async def test_a_source_of_another_length_than_announced_is_an_error(announced: int) -> None:
    source = Chunks([b"x" * 10] * 3, announced=announced)
    outcome, results = await share_out(source, 0, [taker(Share(0, 40))])
    assert isinstance(outcome, str)
    assert {"30", str(announced)} <= set(outcome.split())
    assert results == [outcome]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100), st.booleans()), max_size=30))
def test_progress_follows_the_slowest_node_and_never_decreases(reports: list[tuple[str, int, bool]]) -> None:
    told: list[int] = []
    progress = SlowestProgress(told.append)
    positions = dict.fromkeys("abc", 0)
    progress.begin(positions.items())
    for name, position, dropped in reports:
        before = len(told)
        if dropped:
            progress.drop(name)
            positions.pop(name, None)
        else:
            progress.of(name)(position)
            if name in positions:
                positions[name] = position
        assert all(position == min(positions.values()) for position in told[before:])
    assert told == sorted(set(told))
