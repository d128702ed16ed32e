"""Few programs start at once, in order, and one that does not get ready keeps nobody waiting."""

from __future__ import annotations

import os

import anyio
import anyio.lowlevel
import pytest

from cluster_remote.transport import starting
from cluster_remote.transport.starting import start_in_turn

pytestmark = pytest.mark.anyio
MOST = 4 * (os.cpu_count() or 1)


async def test_few_programs_start_at_once_and_in_order() -> None:
    order: list[int] = []
    running = most = 0

    async def start(number: int) -> None:
        nonlocal running, most
        async with start_in_turn():
            order.append(number)
            running += 1
            most = max(most, running)
            await anyio.sleep(0.005)
            running -= 1

    async with anyio.create_task_group() as tasks:
        for number in range(5 * MOST):
            tasks.start_soon(start, number)
            await anyio.lowlevel.checkpoint()
    assert order == list(range(5 * MOST))
    assert most == MOST


async def test_programs_that_do_not_get_ready_keep_nobody_waiting_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "_LONGEST", 0.1)
    async with anyio.create_task_group() as tasks:

        async def hang() -> None:
            async with start_in_turn():
                await anyio.sleep_forever()

        for _ in range(MOST):
            tasks.start_soon(hang)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            for _ in range(2):
                async with start_in_turn():
                    pass
        tasks.cancel_scope.cancel()


async def test_one_that_stops_waiting_keeps_nobody_waiting() -> None:
    async with anyio.create_task_group() as tasks:

        async def start(scope: anyio.CancelScope) -> None:
            with scope:
                async with start_in_turn():
                    await anyio.sleep_forever()

        scopes = [anyio.CancelScope() for _ in range(MOST + 1)]
        for scope in scopes:
            tasks.start_soon(start, scope)
        await anyio.wait_all_tasks_blocked()
        scopes[-1].cancel()
        scopes[0].cancel()
        with anyio.fail_after(5):
            async with start_in_turn():
                pass
        tasks.cancel_scope.cancel()
