"""StreamSession with peers that a real git-annex cannot be made to be: whatever they do, a request ends within its
deadline with an error that says what happened, and the next request works."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_remote.p2p.client import StreamSession, Transport, patience_for
from cluster_remote.p2p.errors import (
    AuthenticationFailed,
    ConnectionLost,
    ProtocolError,
    Refused,
    SessionError,
    SourceError,
    TimedOut,
    WrongRepository,
)
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.messages import Auth, Message, describe, serialise
from cluster_remote.p2p.session import Download, Present, Removal, Stored, Upload
from cluster_remote.p2p.stream import Connection
from cluster_remote.transport.sockets import TcpTransport
from tests.p2p.memory import CLIENT, OPENING, SERVER, MemoryConnection, Pieces
from tests.p2p.strategies import messages
from tests.support.peers import Close, Expect, Pause, Read, Reset, Script, ScriptedPeer, Send, Stall, Step, opening

pytestmark = pytest.mark.anyio


class InMemory(Transport):
    """A way to connections that were made before."""

    name = "memory"

    def __init__(self, *connections: MemoryConnection) -> None:
        self.left = list(connections)

    async def connect(self) -> Connection:
        return self.left.pop(0)


TOKEN = "sesame0pen"
BRIEF = 0.3
KEY = Key("SHA256E-s6--abc.txt")
UNSIZED = Key("GPGHMACSHA1--0badcafe")
NO_FILE = AssociatedFile()
NODE = UUID("0de00000-0000-4000-8000-000000000003")
HELLO = tuple(opening(str(SERVER), token=TOKEN))
PRESENT: Script = (Expect(f"CHECKPRESENT {KEY}".encode()), Send(b"SUCCESS\n"))


def hello(version: int) -> Script:
    return opening(str(SERVER), token=TOKEN, version=version)


HELLO_0: Script = (*HELLO[:-1], Send(b"ERROR unknown command\n"))


@asynccontextmanager
async def conversation(
    *scripts: Sequence[Step],
    timeout: float = 10.0,
    expected: UUID | None = SERVER,
    bypass: frozenset[UUID] = frozenset(),
    trace: Callable[[bool, Message], None] | None = None,
) -> AsyncIterator[tuple[StreamSession, ScriptedPeer]]:
    """A session with a peer that acts out one script for each connection; one connection more is a failed test."""
    with ScriptedPeer(lambda number: scripts[number] if number < len(scripts) else [Close()], tcp=True) as peer:
        session = StreamSession(
            TcpTransport("127.0.0.1", peer.port, token=TOKEN, name="tcp://peer"),
            client=CLIENT,
            expected=expected,
            timeout=timeout,
            bypass=bypass,
            trace=trace,
        )
        try:
            yield session, peer
        finally:
            await session.aclose()
    assert peer.connections <= len(scripts), "it connected more often than it should"


def no_token_in(error: BaseException) -> bool:
    return TOKEN not in str(error) and TOKEN not in repr(error)


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


async def test_without_an_expectation_any_repository_will_do() -> None:
    async with conversation(HELLO, expected=None) as (session, _):
        assert await session.open() == SERVER


async def test_another_repository_than_the_expected_one_is_refused() -> None:
    async with conversation(HELLO[:2], expected=NODE) as (session, _):
        with pytest.raises(WrongRepository, match=f"is repository {SERVER}, not {NODE}"):
            await session.open()


async def test_a_refused_token_is_an_error_of_its_own_kind_so_that_callers_can_say_what_to_do() -> None:
    async with conversation([HELLO[0], Send(b"AUTH-FAILURE\n")]) as (session, _):
        with pytest.raises(
            AuthenticationFailed, match=r"^tcp://peer: connecting: .* did not accept the token"
        ) as caught:
            await session.open()
    assert no_token_in(caught.value)


async def test_an_error_in_place_of_a_welcome_is_passed_on_without_the_token() -> None:
    said = f"ERROR bad \x1b[31mtoken {TOKEN}\n".encode()
    async with conversation([HELLO[0], Send(said)]) as (session, _):
        with pytest.raises(AuthenticationFailed, match=r"bad  \[31mtoken \[token\]") as caught:
            await session.open()
    assert no_token_in(caught.value)
    assert str(caught.value).isprintable()


async def test_a_token_that_comes_back_is_not_shown() -> None:
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
        ([Close()], ConnectionLost),
        ([Reset()], ConnectionLost),
        ([Send(b"\x00\xff\n"), Stall()], ProtocolError),
        ([Send(b"VALID\n"), Stall()], ProtocolError),
        ([Send(b"SUCC"), Stall()], TimedOut),
    ],
    ids=["stall", "close", "reset", "garbage", "wrong message", "half a line"],
)
async def test_a_peer_that_fails_while_connecting_is_given_up_and_tried_anew_for_the_next_request(
    said: Sequence[Step], end: Sequence[Step], error: type[SessionError]
) -> None:
    async with conversation([*said, *end], [*HELLO, *PRESENT], timeout=BRIEF) as (session, _):
        with pytest.raises(error, match=r"^tcp://peer: checking SHA256E-s6--abc.txt: ") as caught:
            await session.check_present(KEY)
        assert type(caught.value) is error
        assert no_token_in(caught.value)
        assert await session.check_present(KEY)


@pytest.mark.parametrize(("version", "is_sent"), [(1, False), (2, True), (4, True)])
async def test_gateways_to_bypass_are_named_once_from_version_2_on(version: int, is_sent: bool) -> None:
    bypass = [Expect(f"BYPASS {NODE}".encode())] if is_sent else []
    async with conversation([*hello(version), *bypass, *PRESENT, *PRESENT], bypass=frozenset({NODE})) as (session, _):
        assert await session.check_present(KEY)
        assert await session.check_present(KEY)


# Answers


async def remove_before(session: StreamSession) -> object:
    return await session.remove(KEY, 77)


async def lock(session: StreamSession) -> object:
    async with session.lock(KEY) as locked:
        return locked


async def offer(session: StreamSession) -> object:
    async with session.upload(KEY, NO_FILE) as answer:
        return answer


async def store(session: StreamSession) -> object:
    return await session.store(KEY, NO_FILE, Pieces(b"abcdef"))


async def fetch(session: StreamSession) -> object:
    async with session.download(KEY, NO_FILE) as download:
        content = b"".join([chunk async for chunk in download.chunks()])
        return content, await download.valid()


PLUS = f" {NODE}\n".encode()
UPLOADED: Script = (Send(b"PUT-FROM 0\n"), Expect(b"DATA 6"), Read(6), Expect(b"VALID"))


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
async def test_every_answer_is_understood_and_leaves_the_connection_for_the_next_request(
    ask: Callable[[StreamSession], Awaitable[object]], request_line: bytes, answer: Sequence[Step], result: object
) -> None:
    line = request_line if request_line == b"GETTIMESTAMP" else request_line + b" " + bytes(KEY)
    async with conversation([*HELLO, Expect(line), *answer, *PRESENT]) as (session, peer):
        assert await ask(session) == result
        assert await session.check_present(KEY)
        assert peer.connections == 1


REQUESTS: dict[str, Callable[[StreamSession], Awaitable[object]]] = {
    "CHECKPRESENT": lambda session: session.check_present(KEY),
    "REMOVE": lambda session: session.remove(KEY),
    "REMOVE-BEFORE": remove_before,
    "GETTIMESTAMP": lambda session: session.timestamp(),
    "LOCKCONTENT": lock,
    "PUT": store,
    "GET": fetch,
}
each_request = pytest.mark.parametrize("word", REQUESTS)


def request_of(word: str) -> Expect:
    return Expect(re.compile(word.encode() + rb"( .*)?"))


@each_request
async def test_an_error_refuses_the_request_and_leaves_the_connection_for_the_next(word: str) -> None:
    script: Script = [*HELLO, request_of(word), Send(b"ERROR not \x1b[1mtoday\n"), *PRESENT]
    async with conversation(script) as (session, peer):
        with pytest.raises(Refused, match=r"^tcp://peer: .*: not  \[1mtoday$"):
            await REQUESTS[word](session)
        assert await session.check_present(KEY)
        assert peer.connections == 1


async def test_an_error_instead_of_an_outcome_leaves_the_connection_for_the_next_request() -> None:
    script: Script = [*HELLO, request_of("PUT"), *UPLOADED, Send(b"ERROR disk full\n"), *PRESENT]
    async with conversation(script) as (session, peer):
        with pytest.raises(Refused, match=r"uploading SHA256E-s6--abc\.txt: disk full"):
            await store(session)
        assert await session.check_present(KEY)
        assert peer.connections == 1


async def test_a_very_long_refusal_is_cut() -> None:
    script: Script = [*HELLO, request_of("CHECKPRESENT"), Send(b"ERROR no" + b"o" * 60_000 + b"\n")]
    async with conversation(script) as (session, _):
        with pytest.raises(Refused) as caught:
            await session.check_present(KEY)
    assert len(str(caught.value)) < 1000


async def test_a_key_that_a_terminal_would_obey_is_made_harmless_in_errors() -> None:
    key = Key("WORM--a\x1b[2Jb\udcff")
    async with conversation([*HELLO, request_of("CHECKPRESENT"), Send(b"ERROR no\n")]) as (session, _):
        with pytest.raises(Refused) as caught:
            await session.check_present(key)
    assert str(caught.value).isprintable()


# Peers that fail inside a request

# Where in a request: the steps that went well before.
PLACES: dict[str, tuple[Callable[[StreamSession], Awaitable[object]], Script]] = {
    **{word: (ask, [request_of(word)]) for word, ask in REQUESTS.items()},
    "inside the content of a PUT": (
        lambda session: session.store(Key("SHA256E-s9000000--abc"), NO_FILE, Pieces(*[b"x" * 1_000_000] * 9)),
        [request_of("PUT"), Send(b"PUT-FROM 0\n"), Expect(b"DATA 9000000"), Read(1000)],
    ),
    "before the outcome of a PUT": (store, [request_of("PUT"), *UPLOADED]),
    "inside the content of a GET": (fetch, [request_of("GET"), Send(b"DATA 6\nabc")]),
    "before the validity of a GET": (fetch, [request_of("GET"), Send(b"DATA 6\nabcdef")]),
}
# Where what comes next is content, whatever it looks like, and where nobody is listening.
DEAF = {"inside the content of a GET", "inside the content of a PUT"}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("end", "error"),
    [
        ([Stall()], TimedOut),
        ([Close()], ConnectionLost),
        ([Reset()], ConnectionLost),
        ([Send(b"\x00\xff\n"), Stall()], ProtocolError),
        ([Send(b"CHANGED refs/heads/main\n"), Stall()], ProtocolError),
        ([Send(b"x" * 70_000), Stall()], ProtocolError),
    ],
    ids=["stall", "close", "reset", "garbage", "wrong message", "endless line"],
)
async def test_a_peer_that_fails_inside_a_request_fails_that_request_only(
    place: str, end: Sequence[Step], error: type[SessionError]
) -> None:
    if error is ProtocolError and place in DEAF:
        end, error = [Close()], ConnectionLost
    ask, before = PLACES[place]
    async with conversation([*HELLO, *before, *end], [*HELLO, *PRESENT], timeout=BRIEF) as (session, peer):
        await session.open()
        with pytest.raises(error, match=r"^tcp://peer: \w+") as caught:
            await ask(session)
        assert type(caught.value) is error
        assert str(caught.value).isprintable()
        assert session.version is None
        assert await session.check_present(KEY)
        assert peer.connections == 2


@pytest.mark.parametrize("place", PLACES)
async def test_a_cancelled_request_leaves_the_session_usable(place: str) -> None:
    ask, before = PLACES[place]
    async with conversation([*HELLO, *before, Stall()], [*HELLO, *PRESENT]) as (session, peer):
        await session.open()
        with anyio.move_on_after(0.2) as scope:
            await ask(session)
        assert scope.cancelled_caught
        assert await session.check_present(KEY)
        assert peer.connections == 2


@pytest.mark.parametrize("said", [HELLO[:1], HELLO[:2], HELLO[:3]], ids=["auth", "welcome", "version"])
async def test_a_session_cancelled_while_connecting_is_usable(said: Sequence[Step]) -> None:
    async with conversation([*said, Stall()], [*HELLO, *PRESENT]) as (session, _):
        with anyio.move_on_after(0.1) as scope:
            await session.open()
        assert scope.cancelled_caught
        assert await session.check_present(KEY)


async def test_a_request_that_the_deadline_ends_takes_no_longer_than_that() -> None:
    async with conversation([*HELLO, request_of("CHECKPRESENT"), Stall()], timeout=BRIEF) as (session, _):
        await session.open()
        start = time.monotonic()
        with pytest.raises(TimedOut):
            await session.check_present(KEY)
        assert BRIEF <= time.monotonic() - start < 10 * BRIEF


class NoWayThere(Transport):
    """A way that never gets there."""

    name = "the moon"

    async def connect(self) -> Connection:
        await anyio.sleep_forever()
        raise AssertionError


async def test_a_connection_that_does_not_come_about_is_given_up() -> None:
    session = StreamSession(NoWayThere(), client=CLIENT, timeout=BRIEF)
    with pytest.raises(TimedOut, match=r"^the moon: checking .*: no connection within 0\.3 seconds"):
        await session.check_present(KEY)


# Any peer at all


async def _fetch_from_2(session: StreamSession) -> object:
    async with session.download(UNSIZED, NO_FILE, 2) as download:
        return [chunk async for chunk in download.chunks()], await download.valid()


anything = st.lists(
    messages.map(serialise)
    | st.binary(max_size=10)
    | st.sampled_from([b"SUCCESS\n", b"PUT-FROM 3\n", b"DATA 6\nabcdef", b"VALID\n", b"\n"]),
    max_size=6,
)


@pytest.mark.parametrize("ask", [*REQUESTS.values(), _fetch_from_2])
@given(said=anything)
async def test_whatever_a_peer_says_a_request_has_an_outcome_or_a_session_error(
    ask: Callable[[StreamSession], Awaitable[object]], said: list[bytes]
) -> None:
    first, second = MemoryConnection([OPENING, *said]), MemoryConnection([OPENING, b"SUCCESS\n"], stalls=True)
    session = StreamSession(InMemory(first, second), client=CLIENT)
    failure: SessionError | None = None
    try:
        await ask(session)
    except SessionError as error:
        failure = error
    assert failure is None or isinstance(failure, Refused) or first.closed, "any other error closes the connection"
    await session.aclose()
    assert await session.check_present(KEY)


# Patience


def test_patience_grows_with_the_content() -> None:
    assert patience_for(None) == patience_for(0) == 0
    assert patience_for(600 * 1024 * 1024) == 600


@pytest.mark.parametrize("word", ["REMOVE", "PUT", "GET"])
async def test_a_peer_may_take_longer_before_it_answers_about_a_large_content(word: str) -> None:
    large = Key("SHA256E-s104857600--abc")
    answers = {"REMOVE": b"SUCCESS\n", "PUT": b"ALREADY-HAVE\n", "GET": b"ERROR gone\n"}
    script: Script = [*HELLO, request_of(word), Pause(2 * BRIEF), Send(answers[word])]
    async with conversation(script, timeout=BRIEF) as (session, _):
        if word == "REMOVE":
            assert (await session.remove(large)).removed
        elif word == "PUT":
            async with session.upload(large, NO_FILE) as answer:
                assert isinstance(answer, Present)
        else:
            with pytest.raises(Refused, match="gone"):
                async with session.download(large, NO_FILE):
                    pass


# Between requests


async def test_a_connection_that_died_idle_is_reopened_for_the_next_request() -> None:
    async with conversation([*HELLO, *PRESENT, Close()], [*HELLO, *PRESENT]) as (session, peer):
        assert await session.check_present(KEY)
        await _until_ended(session)
        assert await session.check_present(KEY)
        assert peer.connections == 2


@pytest.mark.parametrize("unasked", [b"SUCCESS\n", b"x", b"AUTH-FAILURE\n"])
async def test_what_a_peer_says_unasked_is_never_taken_for_an_answer(unasked: bytes) -> None:
    absent: Script = [Expect(f"CHECKPRESENT {KEY}".encode()), Send(b"FAILURE\n")]
    script: Script = [*HELLO, *PRESENT, Send(unasked), Stall()]
    async with conversation(script, [*HELLO, *absent]) as (session, peer):
        assert await session.check_present(KEY)
        await _until_ended(session)
        assert not await session.check_present(KEY)
        assert peer.connections == 2


async def test_a_connection_is_reopened_only_once_for_a_request() -> None:
    scripts = ([*HELLO, *PRESENT], [*HELLO, request_of("CHECKPRESENT"), Close()], [*HELLO, *PRESENT])
    async with conversation(*scripts) as (session, peer):
        assert await session.check_present(KEY)
        await _until_ended(session)
        with pytest.raises(ConnectionLost):
            await session.check_present(KEY)
        assert peer.connections == 2
        assert await session.check_present(KEY)


async def test_a_closed_session_opens_again_when_it_is_asked() -> None:
    async with conversation([*HELLO, *PRESENT], [*HELLO, *PRESENT]) as (session, _):
        assert await session.check_present(KEY)
        await session.aclose()
        assert session.version is None
        assert await session.check_present(KEY)


async def test_closing_twice_or_without_a_connection_does_nothing() -> None:
    async with conversation(HELLO) as (session, peer):
        await session.aclose()
        assert peer.connections == 0
        await session.open()
        await session.aclose()
        await session.aclose()


async def _until_ended(session: StreamSession) -> None:
    """The other side's end takes a moment to arrive. Looked at where the session will look."""
    with anyio.fail_after(5):
        while session._stream is not None and not session._stream.ended():
            await anyio.sleep(0.01)


# Contexts


@asynccontextmanager
async def _entered(session: StreamSession, word: str) -> AsyncIterator[object]:
    if word == "GET":
        async with session.download(KEY, NO_FILE) as download:
            yield download
    elif word == "PUT":
        async with session.upload(KEY, NO_FILE) as upload:
            yield upload
    else:
        async with session.lock(KEY) as locked:
            yield locked


BEGUN: dict[str, Script] = {
    "GET": [request_of("GET"), Send(b"DATA 6\n")],
    "PUT": [request_of("PUT"), Send(b"PUT-FROM 0\n")],
    "LOCKCONTENT": [request_of("LOCKCONTENT"), Send(b"SUCCESS\n")],
}


@pytest.mark.parametrize("word", ["GET", "PUT"])
async def test_leaving_an_unfinished_transfer_hangs_up(word: str) -> None:
    async with conversation([*HELLO, *BEGUN[word], Stall()], [*HELLO, *PRESENT]) as (session, peer):
        async with _entered(session, word):
            pass
        assert session.version is None
        assert await session.check_present(KEY)
        assert peer.connections == 2


@pytest.mark.parametrize("read", [0, 3, 6])
async def test_leaving_a_download_before_its_validity_is_known_hangs_up(read: int) -> None:
    content = Send(b"DATA 6\nabcdefVALID\n"[: 7 + read])
    async with conversation([*HELLO, request_of("GET"), content, Stall()], [*HELLO, *PRESENT]) as (session, _):
        async with session.download(KEY, NO_FILE) as download:
            if read:
                assert await anext(aiter(download.chunks())) == b"abcdef"[:read]
        assert await session.check_present(KEY)


@pytest.mark.parametrize("word", BEGUN)
async def test_an_exception_inside_a_context_comes_out_as_it_is(word: str) -> None:
    unlock: Script = [Expect(b"UNLOCKCONTENT"), *PRESENT] if word == "LOCKCONTENT" else [Stall()]
    async with conversation([*HELLO, *BEGUN[word], *unlock], [*HELLO, *PRESENT]) as (session, peer):
        with pytest.raises(ZeroDivisionError):
            async with _entered(session, word):
                raise ZeroDivisionError
        assert await session.check_present(KEY)
        assert peer.connections == (1 if word == "LOCKCONTENT" else 2)


@pytest.mark.parametrize("word", ["GET", "PUT"])
async def test_a_refusal_from_elsewhere_inside_a_transfer_is_not_taken_for_the_peers_own(word: str) -> None:
    # The peer is slow, so that only the session itself can know that more is to come.
    script: Script = [*HELLO, *BEGUN[word], Pause(0.2), Send(b"abcdefVALID\n"), Stall()]
    async with conversation(script, [*HELLO, *PRESENT]) as (session, peer):
        with pytest.raises(Refused, match=r"^another session said no$"):
            async with _entered(session, word):
                raise Refused("another session said no")
        assert await session.check_present(KEY)
        assert peer.connections == 2


async def test_a_refusal_from_the_source_of_an_upload_hangs_up() -> None:
    source = Pieces(b"abc", length=6, raises=Refused("the other side said no"))
    async with conversation([*HELLO, *BEGUN["PUT"], Stall()], [*HELLO, *PRESENT]) as (session, peer):
        with pytest.raises(Refused, match="the other side said no"):
            await session.store(KEY, NO_FILE, source)
        assert await session.check_present(KEY)
        assert peer.connections == 2


async def test_a_lock_is_given_up_when_its_context_is_cancelled() -> None:
    async with conversation([*HELLO, *BEGUN["LOCKCONTENT"], Expect(b"UNLOCKCONTENT"), *PRESENT]) as (session, peer):
        with anyio.move_on_after(0.1) as scope:
            async with session.lock(KEY):
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert await session.check_present(KEY)
        assert peer.connections == 1


async def _while_locked_until_ended(session: StreamSession, error: Exception | None = None) -> None:
    async with session.lock(KEY) as locked:
        assert locked
        await _until_ended(session)
        if error is not None:
            raise error


async def test_what_happened_under_a_lock_is_not_hidden_by_a_peer_that_went_away() -> None:
    async with conversation([*HELLO, *BEGUN["LOCKCONTENT"], Reset()], [*HELLO, *PRESENT]) as (session, _):
        with pytest.raises(ZeroDivisionError):
            await _while_locked_until_ended(session, ZeroDivisionError())
        assert await session.check_present(KEY)


async def test_a_lock_whose_peer_went_away_is_an_error_when_it_ends() -> None:
    async with conversation([*HELLO, *BEGUN["LOCKCONTENT"], Reset()]) as (session, _):
        with pytest.raises(ConnectionLost, match=r"locking SHA256E-s6--abc\.txt"):
            await _while_locked_until_ended(session)


async def test_nothing_is_unlocked_that_was_not_locked() -> None:
    script: Script = [*HELLO, request_of("LOCKCONTENT"), Send(b"FAILURE\n"), *PRESENT]
    async with conversation(script) as (session, _):
        async with session.lock(KEY) as locked:
            assert not locked
        assert await session.check_present(KEY)


ENDED: dict[str, Script] = {
    "GET": [Send(b"abcdefVALID\n"), Expect(b"SUCCESS")],
    "PUT": UPLOADED[1:],
    "LOCKCONTENT": [Expect(b"UNLOCKCONTENT")],
}


@pytest.mark.parametrize("word", BEGUN)
async def test_a_second_request_at_the_same_time_is_a_mistake_that_does_not_disturb_the_first(word: str) -> None:
    outcome: Script = [Send(b"SUCCESS\n")] if word == "PUT" else []
    async with conversation([*HELLO, *BEGUN[word], *ENDED[word], *outcome, *PRESENT]) as (session, peer):
        async with _entered(session, word) as begun:
            for ask in REQUESTS.values():
                with pytest.raises(RuntimeError, match="one request at a time"):
                    await ask(session)
            with pytest.raises(RuntimeError, match="one request at a time"):
                await session.open()
            match begun:
                case Upload():
                    assert await begun.send(Pieces(b"abcdef")) == Stored(True)
                case Download():
                    assert b"".join([chunk async for chunk in begun.chunks()]) == b"abcdef"
                    assert await begun.valid()
        assert await session.check_present(KEY)
        assert peer.connections == 1


# Uploads


async def test_an_upload_goes_on_from_the_offset_that_the_peer_asks_for() -> None:
    sent: Script = [Send(b"PUT-FROM 4\n"), Expect(b"DATA 2"), Read(2), Expect(b"VALID"), Send(b"SUCCESS\n")]
    source = Pieces(b"ef")
    file = AssociatedFile("dir/a b")
    async with (
        conversation([*HELLO, request_of("PUT"), *sent]) as (session, peer),
        session.upload(KEY, file) as upload,
    ):
        assert isinstance(upload, Upload)
        assert upload.offset == 4
        assert await upload.send(source) == Stored(True)
    assert source.offsets == [4]
    assert peer.bodies == [b"ef"]
    assert peer.received[2] == f"PUT dir/a%b {KEY}".encode()


async def test_a_peer_that_has_all_the_bytes_already_gets_an_empty_rest() -> None:
    sent: Script = [Send(b"PUT-FROM 6\n"), Expect(b"DATA 0"), Expect(b"VALID"), Send(b"SUCCESS\n"), *PRESENT]
    async with conversation([*HELLO, request_of("PUT"), *sent]) as (session, _):
        assert await session.store(KEY, NO_FILE, Pieces()) == Stored(True)
        assert await session.check_present(KEY)


async def test_an_offset_beyond_the_content_is_a_protocol_error() -> None:
    async with conversation([*HELLO, request_of("PUT"), Send(b"PUT-FROM 7\n"), Stall()]) as (session, _):
        with pytest.raises(ProtocolError, match="PUT-FROM 7 is beyond the content's 6 bytes"):
            await store(session)


@pytest.mark.parametrize("size", [5, 7])
async def test_a_content_that_has_not_the_size_that_its_key_says_is_not_sent(size: int) -> None:
    script: Script = [*HELLO, request_of("PUT"), Send(b"PUT-FROM 0\n"), Stall()]
    async with conversation(script, [*HELLO, *PRESENT]) as (session, _):
        with pytest.raises(SourceError, match=f"the content has {size} bytes; its key says 6"):
            await session.store(KEY, NO_FILE, Pieces(b"x" * size))
        assert await session.check_present(KEY)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (Pieces(b"abc", length=6), "ended 3 bytes too early"),
        (Pieces(b"abcdefg", length=6), "more content than announced"),
        (Pieces(b"abc", length=6, raises=SourceError("cannot read 'f': on fire")), "cannot read 'f': on fire"),
    ],
)
async def test_a_source_that_fails_ends_the_connection_and_says_why(source: Pieces, complaint: str) -> None:
    script: Script = [*HELLO, request_of("PUT"), Send(b"PUT-FROM 0\n"), Stall()]
    async with conversation(script, [*HELLO, *PRESENT]) as (session, peer):
        with pytest.raises(SourceError, match=f"uploading SHA256E-s6--abc.txt: .*{complaint}"):
            await session.store(KEY, NO_FILE, source)
        assert await session.check_present(KEY)
        assert peer.connections == 2


@pytest.mark.parametrize(("answer", "is_stored"), [(b"SUCCESS\n", True), (b"FAILURE\n", False)])
async def test_a_content_that_changed_meanwhile_is_sent_as_invalid(answer: bytes, is_stored: bool) -> None:
    sent: Script = [Send(b"PUT-FROM 0\n"), Expect(b"DATA 6"), Read(6), Expect(b"INVALID"), Send(answer), *PRESENT]
    async with conversation([*HELLO, request_of("PUT"), *sent]) as (session, peer):
        outcome = await session.store(KEY, NO_FILE, Pieces(b"abcdef", valid=False))
        assert isinstance(outcome, Stored)
        assert outcome.stored is is_stored
        assert outcome.reasons[0] == "the content changed while it was sent"
        assert await session.check_present(KEY)
        assert peer.connections == 1


async def test_progress_is_told_in_positions_of_the_whole_content() -> None:
    sent: Script = [Send(b"PUT-FROM 2\n"), Expect(b"DATA 4"), Read(4), Expect(b"VALID"), Send(b"SUCCESS\n")]
    positions: list[int] = []
    async with conversation([*HELLO, request_of("PUT"), *sent]) as (session, _):
        await session.store(KEY, NO_FILE, Pieces(b"cd", b"e", b"f"), positions.append)
    assert positions == [4, 5, 6]


async def test_a_content_can_be_sent_only_once() -> None:
    script: Script = [*HELLO, request_of("PUT"), *UPLOADED, Send(b"SUCCESS\n"), *PRESENT]
    async with conversation(script) as (session, _):
        async with session.upload(KEY, NO_FILE) as upload:
            assert isinstance(upload, Upload)
            await upload.send(Pieces(b"abcdef"))
            with pytest.raises(RuntimeError, match="only once"):
                await upload.send(Pieces(b"abcdef"))
        assert await session.check_present(KEY)


async def test_a_content_without_a_size_in_its_key_is_sent_as_long_as_it_is() -> None:
    sent: Script = [Send(b"PUT-FROM 0\n"), Expect(b"DATA 11"), Read(11), Expect(b"VALID"), Send(b"SUCCESS\n")]
    async with conversation([*HELLO, request_of("PUT"), *sent]) as (session, peer):
        assert await session.store(UNSIZED, NO_FILE, Pieces(b"hello ", b"world")) == Stored(True)
    assert peer.bodies == [b"hello world"]


# Downloads


@pytest.mark.parametrize(("offset", "length"), [(0, 7), (2, 5), (6, 1), (9, 1)])
async def test_more_content_than_the_key_says_is_a_protocol_error(offset: int, length: int) -> None:
    script: Script = [*HELLO, request_of("GET"), Send(b"DATA %d\n" % length), Stall()]
    async with conversation(script, [*HELLO, *PRESENT]) as (session, _):
        with pytest.raises(ProtocolError, match=f"announces {length} bytes from offset {offset} of a content of 6"):
            async with session.download(KEY, NO_FILE, offset):
                pass
        assert await session.check_present(KEY)


async def test_a_download_goes_on_from_an_offset() -> None:
    script: Script = [
        *HELLO,
        Expect(f"GET 4 dir/f {KEY}".encode()),
        Send(b"DATA 2\nefVALID\n"),
        Expect(b"SUCCESS"),
        *PRESENT,
    ]
    async with conversation(script) as (session, _):
        async with session.download(KEY, AssociatedFile("dir/f"), 4) as download:
            assert download.length == 2
            assert [chunk async for chunk in download.chunks()] == [b"ef"]
            assert await download.valid()
            assert await download.valid(), "asking again gives the same answer"
        assert await session.check_present(KEY)


async def test_a_download_can_be_read_in_several_goes() -> None:
    script: Script = [
        *HELLO,
        request_of("GET"),
        Send(b"DATA 6\nabc"),
        Pause(0.05),
        Send(b"defVALID\n"),
        Expect(b"SUCCESS"),
    ]
    async with conversation(script) as (session, _), session.download(KEY, NO_FILE) as download:
        first = await anext(aiter(download.chunks()))
        rest = b"".join([chunk async for chunk in download.chunks()])
        assert bytes(first) + rest == b"abcdef"
        assert await download.valid()


async def test_the_validity_can_only_be_known_after_the_content() -> None:
    script: Script = [*HELLO, request_of("GET"), Send(b"DATA 6\nabcdefVALID\n"), Stall()]
    async with conversation(script) as (session, _), session.download(KEY, NO_FILE) as download:
        with pytest.raises(RuntimeError, match="not been read to its end"):
            await download.valid()


async def test_a_content_of_unknown_size_is_as_long_as_the_peer_says() -> None:
    script: Script = [*HELLO, request_of("GET"), Send(b"DATA 6\nabcdefVALID\n"), Expect(b"SUCCESS")]
    async with conversation(script) as (session, _), session.download(UNSIZED, NO_FILE) as download:
        assert b"".join([chunk async for chunk in download.chunks()]) == b"abcdef"
        assert await download.valid()


# Old versions


@pytest.mark.parametrize(("version", "ask"), [(2, "GETTIMESTAMP"), (2, "REMOVE-BEFORE"), (0, "REMOVE-BEFORE")])
async def test_what_a_version_does_not_have_is_refused_without_asking(version: int, ask: str) -> None:
    start = HELLO_0 if version == 0 else hello(version)
    async with conversation([*start, *PRESENT]) as (session, peer):
        with pytest.raises(Refused, match=f"speaks version {version} of the protocol; this needs version 3"):
            await REQUESTS[ask](session)
        assert await session.check_present(KEY)
        assert peer.connections == 1


async def test_version_0_knows_no_validity() -> None:
    put: Script = [request_of("PUT"), Send(b"PUT-FROM 0\n"), Expect(b"DATA 6"), Read(6), Send(b"SUCCESS\n")]
    get: Script = [request_of("GET"), Send(b"DATA 6\nabcdef"), Expect(b"SUCCESS")]
    async with conversation([*HELLO_0, *put, *get, *PRESENT]) as (session, peer):
        assert await store(session) == Stored(True)
        assert await fetch(session) == (b"abcdef", True)
        assert await session.check_present(KEY)
        assert peer.connections == 1


async def test_in_version_0_a_content_that_changed_is_kept_from_being_stored_by_hanging_up() -> None:
    put: Script = [request_of("PUT"), Send(b"PUT-FROM 0\n"), Stall()]
    async with conversation([*HELLO_0, *put], [*HELLO_0, *PRESENT]) as (session, _):
        with pytest.raises(SourceError, match="changed while it was sent"):
            await session.store(KEY, NO_FILE, Pieces(b"abcdef", valid=False))
        assert await session.check_present(KEY)


async def test_in_version_0_content_that_is_not_there_is_not_valid() -> None:
    script: Script = [*HELLO_0, request_of("GET"), Send(b"DATA 0\n"), Expect(b"FAILURE"), *PRESENT]
    async with conversation(script) as (session, _):
        assert await fetch(session) == (b"", False)
        assert await session.check_present(KEY)


@pytest.mark.parametrize(("key", "offset"), [(UNSIZED, 0), (Key("SHA256E-s0--abc"), 0), (KEY, 6)])
async def test_in_version_0_the_peer_is_asked_whether_it_has_a_content_where_its_data_would_not_tell(
    key: Key, offset: int
) -> None:
    asked = Expect(f"CHECKPRESENT {key}".encode())
    got: Script = [Expect(f"GET {offset}  {key}".encode()), Send(b"DATA 0\n"), Expect(b"SUCCESS")]
    async with conversation([*HELLO_0, asked, Send(b"FAILURE\n"), asked, Send(b"SUCCESS\n"), *got]) as (session, _):
        with pytest.raises(Refused, match="does not have the content"):
            async with session.download(key, NO_FILE, offset):
                pass
        async with session.download(key, NO_FILE, offset) as download:
            assert [chunk async for chunk in download.chunks()] == []
            assert await download.valid()


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


async def test_every_connection_that_failed_has_been_closed() -> None:
    connections = [MemoryConnection(), MemoryConnection([b"AUTH-FAILURE\n"]), MemoryConnection([b"garbage\n"])]
    session = StreamSession(InMemory(*connections), client=CLIENT)
    for error in (ConnectionLost, AuthenticationFailed, ProtocolError):
        with pytest.raises(error):
            await session.open()
    assert [connection.closed for connection in connections] == [1, 1, 1]


class Talkative(MemoryConnection):
    """Like a program that says why it ended."""

    async def last_words(self) -> str:
        return "no such repository"


@pytest.mark.parametrize("said", [b"", f"AUTH-SUCCESS {SERVER}\nVERSION 4\n".encode()])
async def test_the_last_words_of_a_program_are_in_the_error(said: bytes) -> None:
    session = StreamSession(InMemory(Talkative([said, 0.01])), client=CLIENT)
    with pytest.raises(
        ConnectionLost, match=r"^memory: checking .*: the connection was closed .*: no such repository$"
    ):
        await session.check_present(KEY)


def test_the_token_is_no_attribute_that_is_shown() -> None:
    assert TOKEN not in repr(Auth(CLIENT, TOKEN))
