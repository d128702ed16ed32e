"""Asking many nodes about many keys: every answer goes to its key, and one node's failure affects no other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from cluster_remote.annex.locations import Batches, Located
from cluster_remote.cluster.node import Node
from cluster_remote.diagnosis.asking import open_nodes, pipelined
from cluster_remote.p2p.errors import ConnectionLost, Refused, SessionError, TimedOut, Unreachable
from cluster_remote.p2p.key import UUID, Key
from tests.diagnosis.places import UUIDS, Place, has

pytestmark = pytest.mark.anyio

KEYS = [Located(Key(f"WORM--{number}"), frozenset()) for number in range(100)]


def batches_of(size: int) -> list[list[Located]]:
    return [KEYS[start : start + size] for start in range(0, len(KEYS), size)]


@asynccontextmanager
async def given(batches: Sequence[list[Located]]) -> AsyncIterator[Batches]:
    send, receive = anyio.create_memory_object_stream[list[Located]](0)

    async def produce() -> None:
        async with send:
            for batch in batches:
                await send.send(batch)

    async with anyio.create_task_group() as tasks, receive:
        tasks.start_soon(produce)
        yield receive


async def ask(
    places: Sequence[Place], jobs: int = 2, size: int = 7
) -> tuple[list[dict[UUID, bool | None]], dict[UUID, str]]:
    """Return what all nodes say about all keys, in order, and the reasons of those that gave no answer."""
    dealt_with = dict.fromkeys(UUIDS, 0)

    silent = set()

    def advance(node: Node, count: int, answers: bool) -> None:
        dealt_with[node.uuid] += count
        if not answers:
            silent.add(node.uuid)

    answers: list[dict[UUID, bool | None]] = []
    async with (
        given(batches_of(size)) as batches,
        open_nodes([place.node for place in places], jobs, advance) as nodes,
        pipelined(batches, nodes, 3) as complete,
    ):
        async for batch in complete:
            assert list(batch.keys) == KEYS[len(answers) : len(answers) + size]
            answers += [batch.about(number) for number in range(len(batch.keys))]
        # What is asked about again is no progress.
        await nodes.ask(KEYS[:1])
        assert silent == nodes.given_up
    assert all(dealt_with[place.node.uuid] == len(KEYS) for place in places)
    return answers, dict(nodes.errors)


@pytest.mark.parametrize("jobs", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 7, 100])
async def test_every_answer_is_matched_to_its_key_and_node(jobs: int, size: int) -> None:
    answers, errors = await ask([Place(number) for number in range(3)], jobs, size)
    assert answers == [{UUIDS[number]: has(number, each.key) for number in range(3)} for each in KEYS]
    assert errors == {}


async def test_no_more_sessions_run_at_once_than_allowed() -> None:
    place = Place(0)
    await ask([place], jobs=3)
    assert place.sessions == 3
    assert place.most_open <= 3


async def test_a_node_refusing_authentication_is_tried_once_per_session_and_unknown() -> None:
    away = Place(1, lambda _asked, _key: Unreachable("not there"))
    answers, errors = await ask([Place(0), away], jobs=2)
    assert answers == [{UUIDS[0]: has(0, each.key), UUIDS[1]: None} for each in KEYS]
    assert errors == {UUIDS[1]: "not there"}
    assert away.asked <= 2


async def test_a_connection_lost_once_loses_no_answer() -> None:
    place = Place(0, lambda asked, _key: ConnectionLost("broke") if asked == 30 else None)
    answers, errors = await ask([place], jobs=1)
    assert answers == [{UUIDS[0]: has(0, each.key)} for each in KEYS]
    assert errors == {}


async def test_a_node_lost_midway_keeps_its_answers_and_is_unknown_for_the_rest() -> None:
    place = Place(0, lambda asked, _key: ConnectionLost("gone") if asked > 30 else None)
    answers, errors = await ask([place, Place(1)], jobs=1, size=10)
    assert [each[UUIDS[0]] for each in answers[:30]] == [has(0, each.key) for each in KEYS[:30]]
    assert {each[UUIDS[0]] for each in answers[30:]} == {None}
    assert [each[UUIDS[1]] for each in answers] == [has(1, each.key) for each in KEYS]
    assert errors == {UUIDS[0]: "gone"}


async def test_a_stalled_node_is_waited_for_only_once() -> None:
    place = Place(0, lambda asked, _key: TimedOut("silent") if asked >= 15 else None)
    answers, errors = await ask([place], jobs=1, size=10)
    assert errors == {UUIDS[0]: "silent"}
    assert place.asked == 15
    assert {each[UUIDS[0]] for each in answers[10:]} == {None}


async def test_a_refused_key_is_unknown_and_the_others_are_answered() -> None:
    refused = KEYS[13].key
    place = Place(0, lambda _asked, key: Refused("not that one") if key == refused else None)
    answers, errors = await ask([place])
    assert answers == [{UUIDS[0]: None if each.key == refused else has(0, each.key)} for each in KEYS]
    assert errors == {UUIDS[0]: "not that one"}


async def test_a_programming_error_propagates_and_is_not_taken_for_an_answer() -> None:
    def fail(asked: int, key: Key) -> SessionError | bool | None:
        raise ZeroDivisionError

    with pytest.raises(Exception) as failure:  # noqa: PT011 -- a group
        await ask([Place(0, fail)])
    assert "ZeroDivisionError" in repr(failure.value)
