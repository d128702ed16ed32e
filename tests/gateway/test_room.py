"""Too few descriptors, processes or memory: one request is refused with the reason, and the gateway keeps serving."""

from __future__ import annotations

import errno
import itertools
import resource
import subprocess
import sys
from typing import cast

import anyio
import pytest

from cluster_remote.gateway.budget import DescriptorBudget
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


@pytest.mark.anyio
async def test_idle_sessions_are_closed_once_overdue() -> None:
    closed: list[int] = []
    now = 0.0

    class Slow:
        def __init__(self, number: int) -> None:
            self.number = number

        async def aclose(self) -> None:
            await anyio.sleep(0.01)
            closed.append(self.number)

    opened = itertools.count()

    async def session(bypass: frozenset[UUID]) -> Session:
        return cast(Session, Slow(next(opened)))

    async def size() -> int:
        return 1

    lending = SessionPool(DescriptorBudget(1024), size, clock=lambda: now)
    endpoint = Endpoint(UUID("11111111-2222-4333-8444-555555555555"), session)

    async def request() -> None:
        async with lending.lend(endpoint, frozenset(), "one"):
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        # More than are kept, and then all of them overdue at once.
        for _ in range(30):
            tasks.start_soon(request)
    now = 1000.0
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(request)
    await lending.aclose()
    assert sorted(closed) == list(range(40))


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
