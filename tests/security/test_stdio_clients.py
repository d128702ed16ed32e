"""What a client of `serve --stdio`, which has a process of its own, leaves to the others."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import anyio
import pytest

from cluster_remote.gateway import slotfiles, stdio
from cluster_remote.gateway.errors import GatewayError
from cluster_remote.gateway.slotfiles import client_slot, owner_from, take_lock
from cluster_remote.gateway.stdio import StdioLocks
from cluster_remote.p2p.key import UUID, Key
from tests.gateway.test_stdio import ANSWER_SECONDS, SERVE
from tests.support.forked import popen_forked
from tests.support.processes import end_group, wait_until
from tests.support.repositories import Cluster

pytestmark = pytest.mark.anyio
NODE = UUID("11111111-2222-4333-8444-555555555555")


async def is_refused(directory: Path, most: int, owner: str | None, words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slotfiles, "_PATIENCE", 0.0)
        with pytest.raises(GatewayError, match=words):
            async with client_slot(directory, most, owner):
                pass


async def test_busy_clients_keep_their_slots(tmp_path: Path) -> None:
    async with client_slot(tmp_path, 2, None), client_slot(tmp_path, 2, None):
        await is_refused(tmp_path, 2, None, "uses 2 of the 2")
    async with client_slot(tmp_path, 1, None):
        pass


async def test_a_full_disk_keeps_nobody_out(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Nothing can be written to a file.
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        async with client_slot(tmp_path, 2, "one") as slot, client_slot(tmp_path, 2, "two"):
            with slot.idle():
                assert not slot.is_wanted()
            await is_refused(tmp_path, 2, "three", "busy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_one_address_gets_a_share_and_its_idle_clients_give_way(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        first, *_ = [await stack.enter_async_context(client_slot(tmp_path, 4, "one")) for _ in range(3)]
        await is_refused(tmp_path, 4, "one", "one uses 3 of the 4")
        await stack.enter_async_context(client_slot(tmp_path, 4, "two"))

        async def give_way() -> None:
            while not first.is_wanted():
                await anyio.sleep(0.01)
            first.free()

        with first.idle():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(give_way)
                await stack.enter_async_context(client_slot(tmp_path, 4, "three"))


async def test_locks_left_behind_take_no_slot_and_each_client_gets_a_share_of_them(tmp_path: Path) -> None:
    async with client_slot(tmp_path, 1, "one") as slot, client_slot(tmp_path, 2, "two") as other:
        one, two = (StdioLocks(tmp_path, 4, each, NODE, at) for each, at in (("one", slot), ("two", other)))
        assert one.refusal() is None
        with one.keeping(Key("WORM--x")):
            assert "still held" in (one.refusal() or "")
            assert two.refusal() is None
            async with client_slot(tmp_path, 1, "three"):
                pass
        assert one.refusal() is None


async def test_a_lock_that_finds_none_of_the_slots_for_locks_keeps_its_clients_slot(tmp_path: Path) -> None:
    other = take_lock(tmp_path, 1, "two", "y")
    assert other is not None
    async with client_slot(tmp_path, 1, "one") as slot:
        with StdioLocks(tmp_path, 1, "one", NODE, slot).keeping(Key("WORM--x")):
            await is_refused(tmp_path, 1, "three", "uses 0 of the 1")
    other.free()


async def test_a_newer_lock_of_a_client_on_the_same_content_ends_the_older_one(tmp_path: Path) -> None:
    taken = [take_lock(tmp_path, 4, "one", content) for content in ("x", "y")]
    other = take_lock(tmp_path, 4, "two", "x")
    with ExitStack() as stack:
        for each in (*taken, other):
            assert each is not None
            stack.enter_context(each.idle())
            stack.callback(each.free)
        newer = take_lock(tmp_path, 4, "one", "x")
        assert newer is not None
        stack.callback(newer.free)
        assert [each is not None and each.is_wanted() for each in (*taken, other)] == [True, False, False]
        assert take_lock(tmp_path, 4, "three", "z") is None


@pytest.mark.parametrize(
    ("environment", "owner"),
    [
        ({"SSH_CONNECTION": "10.0.0.7 50000 10.0.0.1 22"}, "10.0.0.7"),
        ({"REMOTE_ADDR": "10.0.0.8"}, "10.0.0.8"),
        ({"REMOTE_HOST": "10.0.0.9"}, "10.0.0.9"),
        ({"SSH_CONNECTION": ""}, None),
        ({}, None),
    ],
)
def test_clients_are_counted_by_address(environment: dict[str, str], owner: str | None) -> None:
    assert owner_from(environment) == owner


def started(shared: Cluster, stack: ExitStack, *options: str) -> subprocess.Popen[bytes]:
    process = popen_forked(
        shared.gateway.environment, *SERVE, *options, cwd=shared.gateway.path, stderr=subprocess.DEVNULL
    )
    stack.enter_context(process)
    stack.callback(end_group, process.pid)
    return process


def said(process: subprocess.Popen[bytes], line: str = "") -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line.encode())
    process.stdin.flush()
    return process.stdout.readline().decode()


def ended(process: subprocess.Popen[bytes]) -> Callable[[], bool]:
    return lambda: process.poll() is not None


async def test_a_client_whose_request_is_on_its_way_does_not_give_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(stdio, "_STDIN", reading)
    async with client_slot(tmp_path, 1, None) as slot:
        locks = StdioLocks(tmp_path, 1, None, NODE, slot)
        with slot.idle():
            with (tmp_path / "slot-0").open("r+b") as file:
                file.write(slotfiles._WANTED)
            assert locks.must_give_way()
            os.write(writing, b"VERSION 4\n")
            assert not locks.must_give_way()
            os.read(reading, 100)
            # One that has hung up gives way, such as a lock to a newer one.
            os.close(writing)
            assert locks.must_give_way()
    os.close(reading)


def test_an_idle_client_gives_way_to_a_new_one(shared: Cluster) -> None:
    with ExitStack() as stack:
        idle = started(shared, stack, "--max-clients", "1")
        assert said(idle).startswith("AUTH-SUCCESS")
        # On a busy machine, the idle one may take longer to end than a new one waits.
        assert wait_until(
            lambda: said(started(shared, stack, "--max-clients", "1")).startswith("AUTH-SUCCESS"), ANSWER_SECONDS
        )
        assert wait_until(ended(idle), ANSWER_SECONDS)


def test_a_newer_lock_ends_the_process_of_the_older_one(shared: Cluster) -> None:
    key = "WORM-s1--locked-again"
    shared.nodes[0].set_key(key, b"x")
    locks = []
    with ExitStack() as stack:
        for _ in range(2):
            client = started(shared, stack, "--uuid", shared.nodes[0].uuid)
            assert said(client).startswith("AUTH-SUCCESS")
            assert said(client, f"LOCKCONTENT {key}\n") == "SUCCESS\n"
            assert client.stdin is not None
            client.stdin.close()
            locks.append(client)
        assert wait_until(ended(locks[0]), ANSWER_SECONDS)
        assert locks[1].poll() is None
