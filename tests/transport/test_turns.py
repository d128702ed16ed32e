"""Few tasks work at once, in the order in which they came; one that waits for its client keeps nobody waiting."""

from __future__ import annotations

import time

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskStatus

from cluster_remote.transport.turns import Turn, Turns

pytestmark = pytest.mark.anyio


async def _hold(turns: Turns, *, task_status: TaskStatus[Turn] = anyio.TASK_STATUS_IGNORED) -> None:
    async with turns.turn() as turn:
        task_status.started(turn)
        await anyio.sleep_forever()


async def _is_free(turns: Turns, seconds: float = 0.1) -> bool:
    with anyio.move_on_after(seconds):
        async with turns.turn():
            return True
    return False


async def test_a_task_that_rests_lets_another_begin_until_it_goes_on() -> None:
    turns = Turns(1, 60)
    async with anyio.create_task_group() as tasks:
        turn: Turn = await tasks.start(_hold, turns)
        assert not await _is_free(turns)
        turn.rest()
        assert await _is_free(turns)
        turn.resume()
        assert not await _is_free(turns)
        tasks.cancel_scope.cancel()
    assert await _is_free(turns)


async def test_one_that_goes_on_does_not_wait_for_those_that_began_meanwhile() -> None:
    turns = Turns(1, 60)
    async with anyio.create_task_group() as tasks:
        first: Turn = await tasks.start(_hold, turns)
        first.rest()
        second: Turn = await tasks.start(_hold, turns)
        first.resume()
        second.rest()
        assert not await _is_free(turns)
        tasks.cancel_scope.cancel()


async def test_a_turn_counts_for_a_limited_time() -> None:
    turns = Turns(1, 0.3)
    async with anyio.create_task_group() as tasks:
        await tasks.start(_hold, turns)
        began = time.monotonic()
        assert await _is_free(turns, 10)
        assert time.monotonic() - began >= 0.2
        tasks.cancel_scope.cancel()


async def test_a_long_queue_does_not_wait_long_for_those_that_all_hang() -> None:
    turns = Turns(2, 0.1)
    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(_hold, turns)
        await anyio.lowlevel.checkpoint()
        began = time.monotonic()
        # 50 times 0.1 seconds if each of them counted for as long as the first ones.
        assert await _is_free(turns, 10)
        assert time.monotonic() - began < 2
        tasks.cancel_scope.cancel()
