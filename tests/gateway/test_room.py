"""Too few descriptors, processes or memory: one request is refused with the reason, and the gateway keeps serving."""

from __future__ import annotations

import errno
import itertools
import resource
import subprocess
import sys
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import cast

import anyio
import pytest

from cluster_remote.gateway.budget import DescriptorBudget, ShareUsedUp
from cluster_remote.gateway.sessions import SessionPool
from cluster_remote.p2p.errors import Unreachable
from cluster_remote.p2p.exhaustion import Exhausted, exhaustion_as_session_error
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.server import Endpoint
from cluster_remote.p2p.session import Session


def test_sessions_beyond_the_descriptor_limit_are_refused_but_never_the_first() -> None:
    small = DescriptorBudget(30)
    first = small.take(3, "one")
    with pytest.raises(Unreachable, match="try again later"):
        small.take(3, "two")
    small.give_back(first)
    assert small.take(3, "one") == first
    large = DescriptorBudget(1024)
    assert len([large.take(3, "one") for _ in range(40)]) == 40
    with pytest.raises(Unreachable, match="try again later"):
        large.take(3, "one")
    assert len([large.take(3, "two") for _ in range(12)]) == 12


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EAGAIN, "Resource temporarily unavailable"),
        MemoryError(),
        RuntimeError("can't start new thread"),
    ],
)
def test_running_out_of_room_is_a_request_error_also_inside_an_exception_group(error: Exception) -> None:
    with pytest.raises(Exhausted, match="try again later"), exhaustion_as_session_error():
        raise error
    with pytest.raises(Exhausted), exhaustion_as_session_error():
        raise _group(error)


class _Lending:
    """A pool of sessions that only take a moment to close, and which of them are closed."""

    def __init__(self, descriptors: int) -> None:
        self.closed: list[int] = []
        self.now = 0.0
        self._opened = itertools.count()
        self._endpoint = Endpoint(UUID("11111111-2222-4333-8444-555555555555"), self._session)
        self.pool = SessionPool(DescriptorBudget(descriptors), self._size, clock=lambda: self.now)

    async def _session(self, bypass: frozenset[UUID]) -> Session:
        lending, number = self, next(self._opened)

        class Slow:
            async def aclose(self) -> None:
                await anyio.sleep(0.01)
                lending.closed.append(number)

        return cast(Session, Slow())

    async def _size(self) -> int:
        return 1

    def lend(self, owner: str, *bypassed: UUID) -> AbstractAsyncContextManager[Session]:
        return self.pool.lend(self._endpoint, frozenset(bypassed), owner)

    async def use(self, owner: str, *bypassed: UUID, at_once: int = 1) -> None:
        async def request() -> None:
            async with self.lend(owner, *bypassed):
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as tasks:
            for _ in range(at_once):
                tasks.start_soon(request)


@pytest.mark.anyio
async def test_idle_sessions_are_closed_once_overdue() -> None:
    lending = _Lending(1024)
    # More than are kept, and then all of them overdue at once.
    await lending.use("one", at_once=30)
    lending.now = 1000.0
    await lending.use("one", at_once=10)
    await lending.pool.aclose()
    assert sorted(lending.closed) == list(range(40))


# 64 descriptors beyond the gateway's own, 8 of them in reserve, are room for 7 sessions, and for 5 of one owner.
_ROOM_FOR_SEVEN = 40 + 64
_NODE = UUID("21111111-2222-4333-8444-555555555555")


@pytest.mark.anyio
async def test_an_owner_with_its_share_of_descriptors_ends_only_idle_sessions_of_its_own() -> None:
    lending = _Lending(_ROOM_FOR_SEVEN)
    await lending.use("other", at_once=2)
    await lending.use("busy", _NODE, at_once=5)
    async with lending.lend("busy"):
        # The others' idle sessions are of the kind that it needs, but it may not have a sixth one.
        assert lending.closed == [2]
    async with AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(lending.lend("busy", _NODE))
        with pytest.raises(ShareUsedUp):
            await stack.enter_async_context(lending.lend("busy"))
        assert {0, 1}.isdisjoint(lending.closed)


@pytest.mark.anyio
async def test_a_session_counts_for_the_owner_that_uses_it() -> None:
    lending = _Lending(_ROOM_FOR_SEVEN)
    await lending.use("one", at_once=5)
    async with AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(lending.lend("two"))
        with pytest.raises(ShareUsedUp):
            await stack.enter_async_context(lending.lend("two"))
        await stack.enter_async_context(lending.lend("one"))
    assert lending.closed == []


@pytest.mark.anyio
async def test_no_more_idle_sessions_are_closed_than_a_new_one_needs() -> None:
    lending = _Lending(_ROOM_FOR_SEVEN)
    await lending.use("one", at_once=4)
    await lending.use("two", _NODE, at_once=3)
    async with lending.lend("three", UUID("31111111-2222-4333-8444-555555555555")):
        assert lending.closed == [0]


def _group(error: Exception) -> Exception:
    class Group(Exception):
        exceptions = (ValueError(), error)

    return Group()


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(FileNotFoundError), exhaustion_as_session_error():
        raise FileNotFoundError(errno.ENOENT, "missing")


def test_the_descriptor_limit_is_raised_and_core_files_are_disabled() -> None:
    script = (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (64, 2000));"
        "hard = r.getrlimit(r.RLIMIT_CORE)[1]; r.setrlimit(r.RLIMIT_CORE, (hard, hard));"
        "from cluster_remote.limits import guard_this_process; guard_this_process();"
        "print(r.getrlimit(r.RLIMIT_NOFILE), r.getrlimit(r.RLIMIT_CORE)[0])"
    )
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2000:
        pytest.skip("this machine allows too few descriptors")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "(2000, 2000) 0\n"


def test_a_limit_of_open_files_that_is_reached_is_named_with_the_remedy() -> None:
    program = (
        "import os, resource; from cluster_remote.annex.waiting import run_and_wait;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0) + 2,) * 2); run_and_wait(['true'], timeout=9)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert b"CommandFailed: true: cannot be started: Too many open files; raise the limit with ulimit -n" in done.stderr
