"""StreamSession: opening, every answer, and errors and traces."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

import pytest

from cluster_remote.p2p.client import StreamSession
from cluster_remote.p2p.errors import (
    AuthenticationFailed,
    ConnectionLost,
    NotReached,
    NotTheProtocol,
    ProtocolError,
    Refused,
    SessionError,
    TimedOut,
    WrongRepository,
)
from cluster_remote.p2p.key import Key
from cluster_remote.p2p.messages import describe
from cluster_remote.p2p.session import Present, Removal, Stored
from tests.p2p.memory import CLIENT, SERVER, InMemory, MemoryConnection
from tests.p2p.scripted import (
    BRIEF,
    HELLO,
    HELLO_0,
    KEY,
    NODE,
    PLUS,
    PRESENT,
    REQUESTS,
    TOKEN,
    UPLOADED,
    conversation,
    each_request,
    fetch,
    hello,
    lock,
    no_token_in,
    offer,
    remove_before,
    request_of,
    store,
)
from tests.support.peers import Close, Expect, Reset, Script, Send, Stall, Step

pytestmark = pytest.mark.anyio


# Opening


async def test_a_session_authenticates_and_agrees_on_a_version() -> None:
    async with conversation(HELLO) as (session, peer):
        assert session.version is None
        assert await session.open() == SERVER
        assert session.version == 4
    assert peer.received == [f"AUTH {CLIENT} {TOKEN}".encode(), b"VERSION 4"]


@pytest.mark.parametrize("version", [1, 2, 3, 4])
async def test_the_lower_version_of_the_two_is_spoken(version: int) -> None:
    async with conversation(hello(version)) as (session, _):
        await session.open()
        assert session.version == version


async def test_a_server_that_does_not_know_versions_speaks_version_0() -> None:
    async with conversation(HELLO_0) as (session, _):
        await session.open()
        assert session.version == 0


async def test_opening_an_open_session_says_nothing() -> None:
    async with conversation([*HELLO, Stall()]) as (session, peer):
        await session.open()
        assert await session.open() == SERVER
        assert peer.connections == 1


async def test_without_an_expected_uuid_any_repository_is_accepted() -> None:
    async with conversation(HELLO, expected=None) as (session, _):
        assert await session.open() == SERVER


async def test_an_unexpected_repository_is_refused() -> None:
    async with conversation(HELLO[:2], expected=NODE) as (session, _):
        with pytest.raises(WrongRepository, match=f"is repository {SERVER}, not {NODE}"):
            await session.open()


async def test_a_refused_token_has_its_own_error_type() -> None:
    async with conversation([HELLO[0], Send(b"AUTH-FAILURE\n")]) as (session, _):
        with pytest.raises(
            AuthenticationFailed, match=r"^tcp://peer: connecting: .* did not accept the token"
        ) as caught:
            await session.open()
    assert no_token_in(caught.value)


async def test_an_error_instead_of_authentication_is_passed_on_without_the_token() -> None:
    said = f"ERROR bad \x1b[31mtoken {TOKEN}\n".encode()
    async with conversation([HELLO[0], Send(said)]) as (session, _):
        with pytest.raises(AuthenticationFailed, match=r"bad \\x1b\[31mtoken \[token\]") as caught:
            await session.open()
    assert no_token_in(caught.value)
    assert str(caught.value).isprintable()


async def test_a_token_echoed_by_the_peer_is_not_shown() -> None:
    async with conversation([HELLO[0], Send(f"AUTH {CLIENT} {TOKEN}\n".encode())]) as (session, _):
        with pytest.raises(ProtocolError, match="expected AUTH-SUCCESS") as caught:
            await session.open()
    assert no_token_in(caught.value)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"VERSION 5\n", "expected VERSION 4 or lower, got 'VERSION 5'"),
        (b"VERSION x\n", "is not a number"),
        (b"SUCCESS\n", "expected VERSION 4 or lower, got 'SUCCESS'"),
        (b"what?\n", "unknown message"),
    ],
)
async def test_a_wrong_answer_to_the_version_is_a_protocol_error(answer: bytes, complaint: str) -> None:
    async with conversation([*HELLO[:-1], Send(answer)]) as (session, _):
        with pytest.raises(ProtocolError, match=re.escape(complaint)):
            await session.open()
        assert session.version is None


@pytest.mark.parametrize("said", [HELLO[:1], HELLO[:2], HELLO[:3]], ids=["auth", "welcome", "version"])
@pytest.mark.parametrize(
    ("end", "error"),
    [
        ([Stall()], TimedOut),
        ([Close()], NotReached),
        ([Reset()], NotReached),
        ([Send(b"\x00\xff\n"), Stall()], NotTheProtocol),
        ([Send(b"VALID\n"), Stall()], NotTheProtocol),
        ([Send(b"SUCC"), Stall()], TimedOut),
    ],
    ids=["stall", "close", "reset", "garbage", "wrong message", "half a line"],
)
async def test_a_peer_that_fails_while_connecting_is_given_up_and_retried_for_the_next_request(
    said: Sequence[Step], end: Sequence[Step], error: type[SessionError]
) -> None:
    async with conversation([*said, *end], [*HELLO, *PRESENT], timeout=BRIEF) as (session, _):
        with pytest.raises(error, match=r"^tcp://peer: checking SHA256E-s6--abc.txt: ") as caught:
            await session.check_present(KEY)
        assert type(caught.value) is error
        assert no_token_in(caught.value)
        assert await session.check_present(KEY)


@pytest.mark.parametrize(("version", "is_sent"), [(1, False), (2, True), (4, True)])
async def test_gateways_to_bypass_are_sent_once_from_version_2_on(version: int, is_sent: bool) -> None:
    bypass = [Expect(f"BYPASS {NODE}".encode())] if is_sent else []
    async with conversation([*hello(version), *bypass, *PRESENT, *PRESENT], bypass=frozenset({NODE})) as (session, _):
        assert await session.check_present(KEY)
        assert await session.check_present(KEY)


# Answers


@pytest.mark.parametrize(
    ("ask", "request_line", "answer", "result"),
    [
        (lambda s: s.check_present(KEY), b"CHECKPRESENT", [Send(b"SUCCESS\n")], True),
        (lambda s: s.check_present(KEY), b"CHECKPRESENT", [Send(b"FAILURE\n")], False),
        (lambda s: s.remove(KEY), b"REMOVE", [Send(b"SUCCESS\n")], Removal(True)),
        (lambda s: s.remove(KEY), b"REMOVE", [Send(b"SUCCESS-PLUS" + PLUS)], Removal(True, frozenset({NODE}))),
        (lambda s: s.remove(KEY), b"REMOVE", [Send(b"SUCCESS-PLUS\n")], Removal(True)),
        (
            lambda s: s.remove(KEY),
            b"REMOVE",
            [Send(b"FAILURE\n")],
            Removal(False, reasons=("tcp://peer did not remove it",)),
        ),
        (
            lambda s: s.remove(KEY),
            b"REMOVE",
            [Send(b"FAILURE-PLUS" + PLUS)],
            Removal(False, frozenset({NODE}), ("tcp://peer did not remove it everywhere",)),
        ),
        (remove_before, b"REMOVE-BEFORE 77", [Send(b"SUCCESS\n")], Removal(True)),
        (lambda s: s.timestamp(), b"GETTIMESTAMP", [Send(b"TIMESTAMP 99\n")], 99),
        (lock, b"LOCKCONTENT", [Send(b"SUCCESS\n"), Expect(b"UNLOCKCONTENT")], True),
        (lock, b"LOCKCONTENT", [Send(b"FAILURE\n")], False),
        (offer, b"PUT ", [Send(b"ALREADY-HAVE\n")], Present()),
        (offer, b"PUT ", [Send(b"ALREADY-HAVE-PLUS" + PLUS)], Present(frozenset({NODE}))),
        (store, b"PUT ", [Send(b"ALREADY-HAVE-PLUS \n")], Present()),
        (store, b"PUT ", [*UPLOADED, Send(b"SUCCESS\n")], Stored(True)),
        (store, b"PUT ", [*UPLOADED, Send(b"SUCCESS-PLUS" + PLUS)], Stored(True, frozenset({NODE}))),
        (store, b"PUT ", [*UPLOADED, Send(b"FAILURE\n")], Stored(False, reasons=("tcp://peer did not store it",))),
        (
            store,
            b"PUT ",
            [*UPLOADED, Send(b"FAILURE-PLUS" + PLUS)],
            Stored(False, frozenset({NODE}), ("tcp://peer did not store it",)),
        ),
        (fetch, b"GET 0 ", [Send(b"DATA 6\nabcdefVALID\n"), Expect(b"SUCCESS")], (b"abcdef", True)),
        (fetch, b"GET 0 ", [Send(b"DATA 6\nabcdefINVALID\n"), Expect(b"FAILURE")], (b"abcdef", False)),
        (fetch, b"GET 0 ", [Send(b"DATA 0\nINVALID\n"), Expect(b"FAILURE")], (b"", False)),
        (fetch, b"GET 0 ", [Send(b"DATA 4\nabcdVALID\n"), Expect(b"FAILURE")], (b"abcd", False)),
    ],
)
async def test_every_answer_is_understood_and_keeps_the_connection(
    ask: Callable[[StreamSession], Awaitable[object]], request_line: bytes, answer: Sequence[Step], result: object
) -> None:
    line = request_line if request_line == b"GETTIMESTAMP" else request_line + b" " + bytes(KEY)
    async with conversation([*HELLO, Expect(line), *answer, *PRESENT]) as (session, peer):
        assert await ask(session) == result
        assert await session.check_present(KEY)
        assert peer.connections == 1


@each_request
async def test_an_error_fails_the_request_and_keeps_the_connection(word: str) -> None:
    script: Script = [*HELLO, request_of(word), Send(b"ERROR not \x1b[1mtoday\n"), *PRESENT]
    async with conversation(script) as (session, peer):
        with pytest.raises(Refused, match=r"^tcp://peer: .*: not \\x1b\[1mtoday$"):
            await REQUESTS[word](session)
        assert await session.check_present(KEY)
        assert peer.connections == 1


async def test_an_error_instead_of_an_outcome_keeps_the_connection() -> None:
    script: Script = [*HELLO, request_of("PUT"), *UPLOADED, Send(b"ERROR disk full\n"), *PRESENT]
    async with conversation(script) as (session, peer):
        with pytest.raises(Refused, match=r"uploading SHA256E-s6--abc\.txt: disk full"):
            await store(session)
        assert await session.check_present(KEY)
        assert peer.connections == 1


async def test_a_very_long_refusal_is_truncated() -> None:
    script: Script = [*HELLO, request_of("CHECKPRESENT"), Send(b"ERROR no" + b"o" * 60_000 + b"\n")]
    async with conversation(script) as (session, _):
        with pytest.raises(Refused) as caught:
            await session.check_present(KEY)
    assert len(str(caught.value)) < 1000


async def test_control_characters_in_a_key_are_escaped_in_errors() -> None:
    key = Key("WORM--a\x1b[2Jb\udcff")
    async with conversation([*HELLO, request_of("CHECKPRESENT"), Send(b"ERROR no\n")]) as (session, _):
        with pytest.raises(Refused) as caught:
            await session.check_present(key)
    assert str(caught.value).isprintable()


# What is said


async def test_a_trace_shows_the_whole_conversation_and_no_token() -> None:
    lines: list[str] = []
    script: Script = [*HELLO, *PRESENT, request_of("PUT"), *UPLOADED, Send(b"SUCCESS\n")]
    async with conversation(script, trace=lambda out, message: lines.append("<>"[out] + describe(message))) as (s, _):
        await s.check_present(KEY)
        await store(s)
    assert lines == [
        f">AUTH {CLIENT} [token]",
        f"<AUTH-SUCCESS {SERVER}",
        ">VERSION 4",
        "<VERSION 4",
        f">CHECKPRESENT {KEY}",
        "<SUCCESS",
        f">PUT  {KEY}",
        "<PUT-FROM 0",
        ">DATA 6",
        ">VALID",
        "<SUCCESS",
    ]


async def test_without_a_token_the_peer_speaks_first() -> None:
    connection = MemoryConnection([f"AUTH-SUCCESS {SERVER}\n".encode(), b"VERSION 4\n"], stalls=True)
    session = StreamSession(InMemory(connection), client=CLIENT)
    assert await session.open() == SERVER
    assert connection.written == b"VERSION 4\n"


async def test_a_small_upload_takes_two_writes() -> None:
    connection = MemoryConnection(
        [f"AUTH-SUCCESS {SERVER}\n".encode(), b"VERSION 4\n", b"PUT-FROM 0\n", b"SUCCESS\n"], stalls=True
    )
    session = StreamSession(InMemory(connection), client=CLIENT)
    assert await store(session) == Stored(True)
    assert connection.writes[1:] == [f"PUT  {KEY}\n".encode(), b"DATA 6\nabcdefVALID\n"]


async def test_every_failed_connection_is_closed() -> None:
    connections = [MemoryConnection(), MemoryConnection([b"AUTH-FAILURE\n"]), MemoryConnection([b"garbage\n"])]
    session = StreamSession(InMemory(*connections), client=CLIENT)
    for error in (ConnectionLost, AuthenticationFailed, ProtocolError):
        with pytest.raises(error):
            await session.open()
    assert [connection.closed for connection in connections] == [1, 1, 1]


class Talkative(MemoryConnection):
    """A peer behind a program that writes why it ended to stderr."""

    async def stderr_tail(self) -> str:
        return "no such repository"


@pytest.mark.parametrize("said", [b"", f"AUTH-SUCCESS {SERVER}\nVERSION 4\n".encode()])
async def test_a_programs_stderr_tail_is_in_the_error(said: bytes) -> None:
    session = StreamSession(InMemory(Talkative([said, 0.01])), client=CLIENT)
    with pytest.raises(
        ConnectionLost, match=r"^memory: checking .*: the connection was closed .*: no such repository$"
    ):
        await session.check_present(KEY)
