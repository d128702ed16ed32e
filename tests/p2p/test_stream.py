"""Lines and DATA are read however the bytes are split, and no wait is endless."""

from __future__ import annotations

import time

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_remote.p2p.errors import ConnectionLost, ProtocolError, SourceError, TimedOut
from cluster_remote.p2p.key import Key
from cluster_remote.p2p.messages import (
    Auth,
    CheckPresent,
    Data,
    Error,
    Failure,
    Invalid,
    Message,
    Success,
    Valid,
    Version,
    serialise,
)
from cluster_remote.p2p.stream import CHUNK, MAX_LINE, MessageStream
from tests.p2p.memory import CLIENT, MemoryConnection, Pieces
from tests.p2p.strategies import messages

pytestmark = pytest.mark.anyio

BRIEF = 0.3
KEY = Key("SHA256E-s3--abc")

# A message, or the content after a DATA message.
_other = messages.filter(lambda message: not isinstance(message, Data))
conversations = st.lists(
    st.booleans().flatmap(lambda content: st.binary(max_size=50) if content else _other), max_size=8
)


def on_the_wire(conversation: list[Message | bytes]) -> bytes:
    return b"".join(
        serialise(Data(len(part))) + part if isinstance(part, bytes) else serialise(part) for part in conversation
    )


async def read_all(stream: MessageStream, parts: int) -> list[Message | bytes]:
    found: list[Message | bytes] = []
    for _ in range(parts):
        message = await stream.receive()
        if isinstance(message, Data):
            found.append(b"".join([chunk async for chunk in stream.receive_data(message.length)]))
        else:
            found.append(message)
    return found


def a_stream(*incoming: bytes | float, stalls: bool = False, timeout: float = 5.0) -> MessageStream:
    return MessageStream(MemoryConnection(incoming, stalls=stalls), timeout)


# Framing


@given(conversations, st.lists(st.integers(1, 40)))
async def test_a_conversation_is_read_the_same_however_its_bytes_are_split(
    conversation: list[Message | bytes], sizes: list[int]
) -> None:
    wire = on_the_wire(conversation)
    pieces = []
    for size in sizes:
        pieces.append(wire[:size])
        wire = wire[size:]
    stream = a_stream(*pieces, wire)
    assert await read_all(stream, len(conversation)) == conversation
    with pytest.raises(ConnectionLost):
        await stream.receive()


@given(conversations)
async def test_a_conversation_is_read_byte_by_byte(conversation: list[Message | bytes]) -> None:
    wire = on_the_wire(conversation)
    stream = a_stream(*(bytes([byte]) for byte in wire))
    assert await read_all(stream, len(conversation)) == conversation


async def test_the_message_after_data_may_come_in_the_same_read() -> None:
    stream = a_stream(b"DATA 3\nabcVALID\nDATA 0\nINVALID\nSUC", b"CESS\n")
    assert await read_all(stream, 5) == [b"abc", Valid(), b"", Invalid(), Success()]


async def test_content_that_ends_inside_a_read_ends_there() -> None:
    stream = a_stream(b"DATA 6\n", b"abc", b"defVALID\nSUCCESS\n", stalls=True)
    assert await read_all(stream, 3) == [b"abcdef", Valid(), Success()]


async def test_content_may_look_like_messages() -> None:
    stream = a_stream(b"DATA 16\nVALID\nERROR no\n\nVALID\n")
    assert await read_all(stream, 2) == [b"VALID\nERROR no\n\n", Valid()]


async def test_content_is_read_in_bounded_chunks() -> None:
    size = 3 * CHUNK + 5
    stream = a_stream(b"DATA %d\n" % size, b"x" * size, b"VALID\n")
    assert await stream.receive() == Data(size)
    sizes = [len(chunk) async for chunk in stream.receive_data(size)]
    assert sum(sizes) == size
    assert max(sizes) <= CHUNK
    assert await stream.receive() == Valid()


@pytest.mark.parametrize("accepts", [1, 7, None])
async def test_messages_are_sent_whole_however_little_the_peer_takes_at_once(accepts: int | None) -> None:
    connection = MemoryConnection(accepts=accepts)
    await MessageStream(connection, 5.0).send(Version(4), CheckPresent(KEY))
    assert connection.written == b"VERSION 4\nCHECKPRESENT SHA256E-s3--abc\n"


async def test_messages_sent_together_are_one_write() -> None:
    connection = MemoryConnection()
    await MessageStream(connection, 5.0).send(Version(4), CheckPresent(KEY))
    assert len(connection.writes) == 1


# What a peer must not do


async def test_a_line_of_the_longest_length_is_read() -> None:
    line = b"ERROR " + b"x" * (MAX_LINE - 6)
    assert await a_stream(line, b"\n").receive() == Error("x" * (MAX_LINE - 6))


@pytest.mark.parametrize("end", [b"", b"\n", b"\nSUCCESS\n"])
async def test_an_overlong_line_is_a_protocol_error_whether_or_not_it_ends(end: bytes) -> None:
    stream = a_stream(b"ERROR " + b"x" * (MAX_LINE - 5) + end, stalls=True)
    with pytest.raises(ProtocolError, match="a line of more than 65536 bytes"):
        await stream.receive()


async def test_an_endless_line_is_rejected_after_a_bounded_amount() -> None:
    connection = MemoryConnection([b"x" * 1000] * 10_000, stalls=True)
    with pytest.raises(ProtocolError, match="a line of more than"):
        await MessageStream(connection, 5.0).receive()
    taken = 10_000 - len(connection.incoming)
    assert taken * 1000 <= 2 * MAX_LINE


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\n", b"HTTP/1.1 400 Bad Request\r\n", b"DATA -1\n", b"\n"])
async def test_garbage_is_a_protocol_error_that_says_what_was_being_done(garbage: bytes) -> None:
    with pytest.raises(ProtocolError, match="bad message while agreeing on the version") as caught:
        await a_stream(garbage).receive("agreeing on the version")
    assert str(caught.value).isprintable()


async def test_end_of_stream_inside_a_line_is_a_lost_connection() -> None:
    with pytest.raises(ConnectionLost, match="closed while waiting for an answer"):
        await a_stream(b"SUCCE").receive()


async def test_end_of_stream_inside_content_is_a_lost_connection_saying_how_much_is_missing() -> None:
    stream = a_stream(b"DATA 10\nabc")
    await stream.receive()
    chunks = stream.receive_data(10)
    assert await anext(chunks) == b"abc"
    with pytest.raises(ConnectionLost, match="7 of 10 bytes still to come"):
        await anext(chunks)


# Deadlines


async def test_a_peer_that_never_answers_times_out() -> None:
    with pytest.raises(TimedOut, match=r"no progress for 0\.3 seconds while waiting for an answer"):
        await a_stream(stalls=True, timeout=BRIEF).receive()


async def test_a_whole_line_must_arrive_within_the_deadline() -> None:
    pieces = [piece for byte in b"SUCCESS\n" for piece in (bytes([byte]), 0.1)]
    with pytest.raises(TimedOut):
        await a_stream(*pieces, stalls=True, timeout=BRIEF).receive()


async def test_extra_timeout_is_added_to_the_deadline() -> None:
    stream = a_stream(BRIEF + 0.1, b"SUCCESS\n", timeout=BRIEF)
    assert await stream.receive(extra_timeout=1.0) == Success()


async def test_a_stall_inside_content_times_out() -> None:
    stream = a_stream(b"DATA 10\nabc", stalls=True, timeout=BRIEF)
    await stream.receive()
    with pytest.raises(TimedOut, match="while receiving content"):
        [chunk async for chunk in stream.receive_data(10)]


async def test_trickling_content_is_received_for_as_long_as_it_takes() -> None:
    trickle = [piece for byte in b"0123456789" for piece in (BRIEF / 4, bytes([byte]))]
    stream = a_stream(b"DATA 10\n", *trickle, timeout=BRIEF)
    await stream.receive()
    start = time.monotonic()
    assert b"".join([chunk async for chunk in stream.receive_data(10)]) == b"0123456789"
    assert time.monotonic() - start > BRIEF


async def test_the_consumer_of_content_may_take_longer_than_the_deadline() -> None:
    stream = a_stream(b"DATA 6\n", b"abc", b"def", timeout=BRIEF)
    await stream.receive()
    got = b""
    async for chunk in stream.receive_data(6):
        await anyio.sleep(1.2 * BRIEF)
        got += chunk
    assert got == b"abcdef"


async def test_a_peer_that_takes_no_message_times_out() -> None:
    with pytest.raises(TimedOut, match="while sending a message"):
        await MessageStream(MemoryConnection(takes=0), BRIEF).send(Version(4))


async def test_a_peer_that_stops_taking_content_times_out() -> None:
    connection = MemoryConnection(takes=300_000)
    async with Pieces(b"x" * 600_000).read(0) as reading:
        with pytest.raises(TimedOut, match="while sending content"):
            await MessageStream(connection, BRIEF).send_data(reading, lambda valid: [Valid()])
    assert len(connection.written) == 300_000


async def test_a_peer_that_takes_content_slowly_is_served_for_as_long_as_it_takes() -> None:
    class Slow(MemoryConnection):
        async def send_some(self, data: memoryview) -> int:
            await anyio.sleep(BRIEF / 4)
            return await super().send_some(data)

    connection = Slow(accepts=100)
    async with Pieces(b"x" * 900).read(0) as reading:
        await MessageStream(connection, BRIEF).send_data(reading, lambda valid: [Valid()])
    assert connection.written == b"DATA 900\n" + b"x" * 900 + b"VALID\n"


async def test_a_slow_source_is_not_blamed_on_the_peer() -> None:
    connection = MemoryConnection()
    async with Pieces(b"abc", 1.2 * BRIEF, b"def").read(0) as reading:
        await MessageStream(connection, BRIEF).send_data(reading, lambda valid: [Valid()])
    assert connection.written == b"DATA 6\nabcdefVALID\n"


# Sending content


async def test_small_content_is_one_write_with_its_header_and_validity() -> None:
    connection = MemoryConnection()
    async with Pieces(b"abc", b"def").read(0) as reading:
        assert await MessageStream(connection, 5.0).send_data(reading, lambda valid: [Valid()])
    assert connection.writes == [b"DATA 6\nabcdefVALID\n"]


async def test_small_content_from_a_slow_source_is_not_held_back() -> None:
    connection = MemoryConnection()
    seen: list[bytes] = []

    source = Pieces(b"a", 0.4, b"b", b"c", watch=lambda: seen.append(connection.written))
    async with source.read(0) as reading:
        await MessageStream(connection, 5.0).send_data(reading, lambda valid: [Valid()])
    assert seen == [b"", b"", b"DATA 3\nab"]
    assert connection.written == b"DATA 3\nabcVALID\n"


@given(st.lists(st.integers(0, 200_000), max_size=8), st.booleans())
async def test_content_arrives_unchanged_whatever_the_chunk_sizes(sizes: list[int], valid: bool) -> None:
    pieces = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    connection = MemoryConnection()
    async with Pieces(*pieces, valid=valid).read(0) as reading:
        told = await MessageStream(connection, 5.0).send_data(reading, lambda v: [Valid() if v else Invalid()])
    assert told is valid
    end = b"VALID\n" if valid else b"INVALID\n"
    assert connection.written == b"DATA %d\n" % sum(sizes) + b"".join(pieces) + end


async def test_large_content_is_not_copied_into_larger_writes() -> None:
    connection = MemoryConnection()
    async with Pieces(*[b"x" * CHUNK] * 4).read(0) as reading:
        await MessageStream(connection, 5.0).send_data(reading, lambda valid: [])
    assert max(map(len, connection.writes)) <= CHUNK


async def test_a_source_longer_than_announced_fails_without_sending_too_much() -> None:
    connection = MemoryConnection()
    async with Pieces(b"x" * 300_000, b"abc", length=300_000).read(0) as reading:
        with pytest.raises(SourceError, match="longer than announced"):
            await MessageStream(connection, 5.0).send_data(reading, lambda valid: [Valid()])
    assert len(connection.written) <= len(b"DATA 300000\n") + 300_000


async def test_a_source_shorter_than_announced_fails_without_a_verdict() -> None:
    connection = MemoryConnection()
    async with Pieces(b"abc", length=5).read(0) as reading:
        with pytest.raises(SourceError, match="ended 2 bytes early"):
            await MessageStream(connection, 5.0).send_data(reading, lambda valid: [Valid()])
    assert b"VALID" not in connection.written


async def test_a_source_error_propagates_unchanged() -> None:
    connection = MemoryConnection()
    async with Pieces(b"abc", length=5, raises=SourceError("the disk is on fire")).read(0) as reading:
        with pytest.raises(SourceError, match="the disk is on fire"):
            await MessageStream(connection, 5.0).send_data(reading, lambda valid: [Valid()])


# Between requests


async def test_a_stream_with_unsolicited_input_counts_as_ended() -> None:
    stream = a_stream(b"SUCCESS\nSUCCESS\n", stalls=True)
    assert not a_stream(stalls=True).ended()
    await stream.receive()
    assert stream.ended()


async def test_a_stream_whose_peer_disconnected_counts_as_ended() -> None:
    assert a_stream().ended()


async def test_messages_are_traced_with_their_direction_but_content_is_not() -> None:
    traced: list[tuple[bool, Message]] = []
    connection = MemoryConnection([b"FAILURE\nDATA 3\nabcVALID\n"])
    stream = MessageStream(connection, 5.0, lambda outgoing, message: traced.append((outgoing, message)))
    await stream.send(Auth(CLIENT, "secret"))
    await read_all(stream, 3)
    async with Pieces(b"def").read(0) as reading:
        await stream.send_data(reading, lambda valid: [Valid()])
    assert traced == [
        (True, Auth(CLIENT, "secret")),
        (False, Failure()),
        (False, Data(3)),
        (False, Valid()),
        (True, Data(3)),
        (True, Valid()),
    ]
    assert "secret" not in repr(traced)
