"""Many questions on one connection, ahead of their answers."""

from __future__ import annotations

import itertools

import pytest

from cluster_remote.p2p.errors import ConnectionLost, ProtocolError, Refused
from cluster_remote.p2p.key import Key
from tests.p2p.scripted import HELLO, KEY, PRESENT, TOKEN, conversation
from tests.support.peers import Close, Expect, Script, Send

pytestmark = pytest.mark.anyio

KEYS = [Key(f"WORM-s{number}--{'x' * 100}{number}") for number in range(400)]


def questions(keys: list[Key]) -> Script:
    return [Expect(f"CHECKPRESENT {key}".encode()) for key in keys]


def answers(count: int) -> Script:
    return [Send(b"".join(itertools.islice(itertools.cycle((b"SUCCESS\n", b"FAILURE\n")), count)))]


async def test_each_key_gets_its_own_answer() -> None:
    said = Send(b"SUCCESS\nFAILURE\nERROR no such luck\nSUCCESS\n")
    async with conversation([*HELLO, *questions(KEYS[:4]), said, *PRESENT]) as (session, _peer):
        first, second, third, fourth = await session.check_all(KEYS[:4])
        assert (first, second, fourth) == (True, False, True)
        assert isinstance(third, Refused)
        assert "no such luck" in str(third)
        # The connection goes on as before.
        assert await session.check_present(KEY)


async def test_questions_are_pipelined() -> None:
    # The peer answers nothing before it has heard all of these.
    few = KEYS[:50]
    async with conversation([*HELLO, *questions(few), *answers(50)]) as (session, _peer):
        assert await session.check_all(few) == [True, False] * 25


async def test_more_questions_than_a_pipe_holds_are_sent_as_answers_arrive() -> None:
    script = [*HELLO]
    for number, key in enumerate(KEYS):
        script += [*questions([key]), Send(b"FAILURE\n" if number % 2 else b"SUCCESS\n")]
    async with conversation(script) as (session, _peer):
        assert await session.check_all(KEYS) == [True, False] * 200


async def test_without_keys_nothing_is_asked() -> None:
    async with conversation(HELLO) as (session, peer):
        assert await session.check_all([]) == []
    assert not any(line.startswith(b"CHECKPRESENT") for line in peer.received)


async def test_a_connection_lost_midway_raises_and_the_next_request_reconnects() -> None:
    first = [*HELLO, *questions(KEYS[:3]), Send(b"SUCCESS\n"), Close()]
    async with conversation(first, [*HELLO, *PRESENT]) as (session, _peer):
        with pytest.raises(ConnectionLost, match="checking 3 keys"):
            await session.check_all(KEYS[:3])
        assert await session.check_present(KEY)


async def test_an_unexpected_answer_is_a_protocol_error() -> None:
    script = [*HELLO, *questions(KEYS[:2]), Send(b"SUCCESS\nALREADY-HAVE\n")]
    async with conversation(script) as (session, _peer):
        with pytest.raises(ProtocolError, match="ALREADY-HAVE"):
            await session.check_all(KEYS[:2])


async def test_a_refusal_does_not_repeat_the_token() -> None:
    script = [*HELLO, *questions(KEYS[:1]), Send(f"ERROR not with {TOKEN}\n".encode())]
    async with conversation(script) as (session, _peer):
        (refusal,) = await session.check_all(KEYS[:1])
        assert TOKEN not in str(refusal)
