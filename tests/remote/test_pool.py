"""The sessions of one process's jobs, when a server has little room."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from cluster_remote.p2p.client import StreamSession
from cluster_remote.p2p.errors import NoRoom
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.stream import Trace
from cluster_remote.remote import pool as module
from cluster_remote.remote.pool import SessionPool
from tests.p2p.memory import SERVER

pytestmark = pytest.mark.anyio


class _Server:
    """Has room for so many connections."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.pool = SessionPool(self._make)

    async def _make(self, trace: Trace) -> StreamSession:
        return _Session(self)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[StreamSession]:
        """Borrow a session for a request that connects."""
        async with self.pool.lend(None) as session:
            assert isinstance(session, StreamSession)
            await session.open()
            yield session


class _Session(StreamSession):
    def __init__(self, server: _Server) -> None:
        self._server = server
        self._version = None

    async def open(self) -> UUID:
        if self._version is None:
            if not self._server.room:
                raise NoRoom("no room")
            self._server.room -= 1
            self._version = 3
        return SERVER


async def test_jobs_wait_for_no_request_that_ends_without_connecting() -> None:
    server = _Server(9)
    ended: list[int] = []

    async def job(number: int) -> None:
        async with server.pool.lend(None):
            await anyio.sleep(0.05)
        ended.append(number)

    with anyio.fail_after(1):
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(job, number)
    assert sorted(ended) == [0, 1, 2, 3]


async def test_jobs_do_not_wait_long_for_one_that_cannot_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    server = _Server(9)
    with anyio.fail_after(5):
        async with server.pool.lend(None), server.connected() as second, server.connected() as third:
            assert second is not third


async def test_jobs_take_turns_where_the_server_has_no_room_for_all() -> None:
    server = _Server(2)
    used: list[StreamSession] = []

    async def job() -> None:
        async with server.connected() as session:
            used.append(session)
            await anyio.sleep(0.02)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(job)
    assert len(used) == 6
    assert len(set(used)) == 2


async def test_a_job_without_any_room_is_told() -> None:
    server = _Server(0)
    with pytest.raises(NoRoom):
        async with server.connected():
            pass


async def test_a_job_that_gives_up_waiting_leaves_the_others_their_sessions() -> None:
    server = _Server(1)
    async with AsyncExitStack() as first:
        session = await first.enter_async_context(server.connected())
        with anyio.move_on_after(0.1) as waiting:
            async with server.connected():
                pass
        assert waiting.cancelled_caught
    async with server.connected() as again:
        assert again is session
