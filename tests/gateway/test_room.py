"""Too few descriptors, processes or memory: one request is refused with the reason, and the gateway keeps serving."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

import anyio
import anyio.lowlevel
import pytest

from cluster_remote.gateway import sessions
from cluster_remote.gateway.budget import DescriptorBudget, ShareUsedUp
from cluster_remote.gateway.sessions import SessionPool
from cluster_remote.p2p.errors import Refused, Unreachable
from cluster_remote.p2p.exhaustion import Exhausted, exhaustion_as_session_error
from cluster_remote.p2p.key import UUID, Key
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


_KEY = Key("WORM--a")
_NODE = UUID("21111111-2222-4333-8444-555555555555")


class _Lending:
    """A pool of sessions that only take a moment to open, to answer and to close, and which of them are closed."""

    def __init__(self, descriptors: int = 1024, closing: float = 0.01) -> None:
        self.opened = 0
        self.closed: list[int] = []
        self.closing = closing
        self.now = 0.0
        self.nodes: object = None
        self.failure: Exception | None = None
        self.refusal: Exception | None = None
        self.endpoint = Endpoint(UUID("ac111111-2222-8333-8444-555555555555"), self._session)
        self.pool = SessionPool(DescriptorBudget(descriptors), self._size, self._version, clock=lambda: self.now)

    async def _session(self, bypass: frozenset[UUID]) -> Session:
        lending, number = self, self.opened
        self.opened += 1
        await anyio.sleep(0.01)
        if (refusal := self.refusal) is not None:
            raise refusal

        class Slow:
            async def check_present(self, key: Key) -> bool:
                await anyio.sleep(0.01)
                if lending.failure is not None:
                    raise lending.failure
                return True

            @asynccontextmanager
            async def lock(self, key: Key) -> AsyncIterator[bool]:
                yield True

            async def aclose(self) -> None:
                await anyio.sleep(lending.closing)
                lending.closed.append(number)

        return cast(Session, Slow())

    async def _size(self) -> int:
        return 1

    async def _version(self, max_age: float) -> object:
        return self.nodes

    @asynccontextmanager
    async def lend(self, owner: str, *bypassed: UUID) -> AsyncIterator[None]:
        """Lend a session for as long as a lock lasts, which is as long as its client likes."""
        session = await self.pool.session(self.endpoint, owner, frozenset(bypassed))
        async with session.lock(_KEY):
            yield

    async def use(self, owner: str, *bypassed: UUID, at_once: int = 1) -> None:
        async def request() -> None:
            async with self.lend(owner, *bypassed):
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as tasks:
            for _ in range(at_once):
                tasks.start_soon(request)

    async def ask(self, *, at_once: int = 1) -> None:
        session = await self.pool.session(self.endpoint, "one", frozenset())
        async with anyio.create_task_group() as tasks:
            for _ in range(at_once - 1):
                tasks.start_soon(session.check_present, _KEY)
            await session.check_present(_KEY)


@pytest.mark.anyio
async def test_many_clients_share_few_sessions_which_end_with_the_last_client() -> None:
    lending = _Lending()
    async with lending.pool.client():
        async with lending.pool.client():
            await lending.ask(at_once=100)
        few = lending.opened
        assert 1 < few <= max(8, 4 * (os.cpu_count() or 1))
        assert not lending.closed
    assert sorted(lending.closed) == list(range(few))


@pytest.mark.anyio
async def test_a_client_that_keeps_its_session_takes_no_turn_from_others() -> None:
    lending = _Lending()
    async with AsyncExitStack() as stack:
        for _ in range(max(8, 4 * (os.cpu_count() or 1))):
            await stack.enter_async_context(lending.lend("slow"))
        with anyio.fail_after(0.5):
            await lending.ask()


@pytest.mark.anyio
async def test_idle_sessions_are_closed_once_overdue() -> None:
    lending = _Lending()
    await lending.use("one", at_once=5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lending.pool.close_unused, 0.01)
        await anyio.sleep(0.05)
        assert not lending.closed
        lending.now = 1000.0
        with anyio.fail_after(10):
            while len(lending.closed) < 5:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_client_that_stays_connected_gets_a_new_session_once_the_nodes_have_changed() -> None:
    lending = _Lending()
    session = await lending.pool.session(lending.endpoint, "one", frozenset())
    await session.check_present(_KEY)
    lending.nodes = "others"
    await session.check_present(_KEY)
    await session.check_present(_KEY)
    assert lending.opened == 2


@pytest.mark.anyio
async def test_a_new_client_gets_no_session_that_was_opened_before_the_nodes_changed() -> None:
    lending = _Lending()
    await lending.ask()
    await lending.ask()
    assert lending.opened == 1
    lending.nodes = "others"
    await lending.ask()
    assert lending.opened == 2


# So many sessions are only exceeded after a while, in the hope that one is returned.
_MANY = 2 * max(8, 4 * (os.cpu_count() or 1))


@pytest.mark.anyio
async def test_a_client_of_something_else_does_not_wait_until_many_idle_sessions_end() -> None:
    lending = _Lending()
    await lending.use("one", at_once=_MANY)
    with anyio.fail_after(0.3):
        await lending.use("two", _NODE)
    assert lending.closed == [0]


@pytest.mark.anyio
async def test_a_client_of_something_else_gets_a_session_while_others_return_and_borrow_theirs_all_the_time() -> None:
    lending = _Lending()
    borrowing = anyio.Event()

    async def keep_borrowing() -> None:
        while True:
            await lending.use("one")
            borrowing.set()

    async with AsyncExitStack() as stack:
        # They are never idle, and one is returned all the time.
        for _ in range(_MANY):
            await stack.enter_async_context(lending.lend("one"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_borrowing)
            await borrowing.wait()
            with anyio.fail_after(5):
                await lending.use("two", _NODE)
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_sessions_end_concurrently() -> None:
    lending = _Lending(closing=0.2)
    await lending.use("one", at_once=10)
    began = anyio.current_time()
    await lending.pool.aclose()
    assert len(lending.closed) == 10
    assert anyio.current_time() < began + 1


@pytest.mark.parametrize(
    ("failure", "opened"), [(Refused("no"), 1), (Exhausted("full"), 2), (OSError(errno.EMFILE, "full"), 2)]
)
@pytest.mark.anyio
async def test_a_session_is_used_again_unless_it_may_be_half_initialised(failure: Exception, opened: int) -> None:
    lending = _Lending()
    lending.failure = failure
    session = await lending.pool.session(lending.endpoint, "one", frozenset())
    for _ in range(2):
        with pytest.raises(type(failure)):
            await session.check_present(_KEY)
    assert lending.opened == opened
    assert len(lending.closed) == (0 if opened == 1 else 2)


# 64 descriptors beyond the gateway's own, 8 of them in reserve, are room for 7 sessions, and for 5 of one owner.
_ROOM_FOR_SEVEN = 40 + 64


@pytest.mark.anyio
async def test_requests_wait_for_each_others_sessions_where_there_is_no_room_for_more() -> None:
    lending = _Lending(40 + 9)
    await lending.ask(at_once=20)
    assert lending.opened == 1


@pytest.mark.anyio
async def test_a_session_that_is_returned_while_others_wait_for_room_is_used_rather_than_ended() -> None:
    lending = _Lending(40 + 9)
    session = await lending.pool.session(lending.endpoint, "one", frozenset())

    async def ask_after(steps: int) -> None:
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        await session.check_present(_KEY)

    await lending.ask()
    # One of them comes just when the session is returned.
    async with anyio.create_task_group() as tasks, lending.lend("one"):
        for steps in range(15):
            tasks.start_soon(ask_after, steps)
        for _ in range(8):
            await anyio.lowlevel.checkpoint()
    assert lending.opened == 1


@pytest.mark.anyio
async def test_a_session_that_cannot_be_opened_makes_room_for_others_at_once() -> None:
    lending = _Lending(40 + 9)
    lending.refusal = Unreachable("no cluster")
    session = await lending.pool.session(lending.endpoint, "one", frozenset())

    async def ask() -> None:
        with pytest.raises(Unreachable, match="no cluster"):
            await session.check_present(_KEY)

    with anyio.fail_after(2):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
    assert lending.opened == 20


@pytest.mark.anyio
async def test_an_owner_with_its_share_of_descriptors_ends_only_idle_sessions_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "_WAIT", 0.05)
    lending = _Lending(_ROOM_FOR_SEVEN)
    await lending.use("other", at_once=2)
    await lending.use("busy", _NODE, at_once=5)
    async with lending.lend("busy"):
        # It may not have a sixth one, so it takes over an idle one of the others, which is of the kind that it needs.
        assert lending.closed == [2]
        assert lending.opened == 7
    async with AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(lending.lend("busy", _NODE))
        with pytest.raises(ShareUsedUp):
            await stack.enter_async_context(lending.lend("busy"))
        assert 0 not in lending.closed


@pytest.mark.anyio
async def test_a_session_counts_for_the_owner_that_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_WAIT", 0.05)
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
