"""StreamSession with peers that a real git-annex cannot be made to be: whatever they do, a request ends within its
deadline with an error that says what happened, and the next request works."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_remote.p2p.client import StreamSession, Transport
from cluster_remote.p2p.errors import (
    ConnectionLost,
    ProtocolError,
    Refused,
    SessionError,
    TimedOut,
)
from cluster_remote.p2p.key import Key
from cluster_remote.p2p.messages import serialise
from cluster_remote.p2p.session import Present
from cluster_remote.p2p.stream import Connection
from cluster_remote.p2p.timeouts import extra_timeout_for
from tests.p2p.memory import CLIENT, OPENING, InMemory, MemoryConnection, Pieces
from tests.p2p.scripted import (
    BRIEF,
    HELLO,
    KEY,
    NO_FILE,
    PRESENT,
    REQUESTS,
    UNSIZED,
    UPLOADED,
    conversation,
    fetch,
    request_of,
    store,
    until_ended,
)
from tests.p2p.strategies import messages
from tests.support.peers import Close, Expect, Pause, Read, Reset, Script, Send, Stall, Step
from tests.support.slow import only_in_all

pytestmark = pytest.mark.anyio


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
    async with conversation([*HELLO, *before, *end], [*HELLO, *PRESENT], timeout=20) as (session, peer):
        await session.open()
        if error is TimedOut:
            # Only here: to connect may take a busy machine longer than that.
            assert session._stream is not None
            session._stream.timeout = BRIEF
        with pytest.raises(error, match=r"^tcp://peer: \w+") as caught:
            await ask(session)
        assert type(caught.value) is error
        assert str(caught.value).isprintable()
        assert session.version is None
        assert await session.check_present(KEY)
        assert peer.connections == 2


async def test_a_request_on_a_connection_that_just_gave_way_to_others_is_sent_again() -> None:
    full = [*HELLO[:1], Send(b"ERROR all clients are busy; try again later\n"), Close()]
    removed: Script = [request_of("REMOVE"), Send(b"SUCCESS\n")]
    async with conversation([*HELLO, *PRESENT, *removed[:1], Close()], full, [*HELLO, *removed, *PRESENT]) as (
        session,
        peer,
    ):
        assert await session.check_present(KEY)
        assert (await session.remove(KEY)).removed
        assert await session.check_present(KEY)
        assert peer.connections == 3


async def test_a_gateway_that_is_gone_by_then_is_a_lost_connection() -> None:
    async with conversation([*HELLO, *PRESENT, request_of("REMOVE"), Close()], [Close()]) as (session, _):
        assert await session.check_present(KEY)
        # Not that it could not be reached: the content may have been removed.
        with pytest.raises(ConnectionLost) as caught:
            await session.remove(KEY)
        assert type(caught.value) is ConnectionLost


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


async def test_a_request_takes_no_longer_than_its_deadline() -> None:
    async with conversation([*HELLO, request_of("CHECKPRESENT"), Stall()], timeout=BRIEF) as (session, _):
        await session.open()
        start = time.monotonic()
        with pytest.raises(TimedOut):
            await session.check_present(KEY)
        assert BRIEF <= time.monotonic() - start < 10 * BRIEF


class NoWayThere(Transport):
    """A transport that never connects."""

    name = "the moon"

    async def connect(self) -> Connection:
        await anyio.sleep_forever()
        raise AssertionError


async def test_a_connection_that_cannot_be_made_times_out() -> None:
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


@pytest.mark.parametrize(
    "ask", [*list(REQUESTS.values())[:3], *only_in_all(*list(REQUESTS.values())[3:]), _fetch_from_2]
)
@given(said=anything)
async def test_any_answer_gives_an_outcome_or_a_session_error(
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


def test_extra_timeout_grows_with_the_content() -> None:
    assert extra_timeout_for(None) == extra_timeout_for(0) == 0
    assert extra_timeout_for(600 * 1024 * 1024) == 600


@pytest.mark.parametrize("word", ["REMOVE", "PUT", "GET"])
async def test_a_peer_may_take_longer_to_answer_about_large_content(word: str) -> None:
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


async def test_a_connection_lost_while_idle_is_reopened_for_the_next_request() -> None:
    async with conversation([*HELLO, *PRESENT, Close()], [*HELLO, *PRESENT]) as (session, peer):
        assert await session.check_present(KEY)
        await until_ended(session)
        assert await session.check_present(KEY)
        assert peer.connections == 2


@pytest.mark.parametrize("unasked", [b"SUCCESS\n", b"x", b"AUTH-FAILURE\n"])
async def test_unsolicited_messages_are_never_taken_for_an_answer(unasked: bytes) -> None:
    absent: Script = [Expect(f"CHECKPRESENT {KEY}".encode()), Send(b"FAILURE\n")]
    script: Script = [*HELLO, *PRESENT, Send(unasked), Stall()]
    async with conversation(script, [*HELLO, *absent]) as (session, peer):
        assert await session.check_present(KEY)
        await until_ended(session)
        assert not await session.check_present(KEY)
        assert peer.connections == 2


async def test_a_connection_is_reopened_only_once_per_request() -> None:
    scripts = ([*HELLO, *PRESENT], [*HELLO, request_of("CHECKPRESENT"), Close()], [*HELLO, *PRESENT])
    async with conversation(*scripts) as (session, peer):
        assert await session.check_present(KEY)
        await until_ended(session)
        with pytest.raises(ConnectionLost):
            await session.check_present(KEY)
        assert peer.connections == 2
        assert await session.check_present(KEY)


async def test_a_closed_session_reopens_on_the_next_request() -> None:
    async with conversation([*HELLO, *PRESENT], [*HELLO, *PRESENT]) as (session, _):
        assert await session.check_present(KEY)
        await session.aclose()
        assert session.version is None
        assert await session.check_present(KEY)


async def test_closing_twice_or_unconnected_is_harmless() -> None:
    async with conversation(HELLO) as (session, peer):
        await session.aclose()
        assert peer.connections == 0
        await session.open()
        await session.aclose()
        await session.aclose()
