"""Sessions around sessions."""

from __future__ import annotations

import anyio
import pytest

from cluster_remote.cluster.wrapping import OneAtATime
from cluster_remote.p2p.key import AssociatedFile

from .fakes import Content, FakeSession, Peer, key_of

pytestmark = pytest.mark.anyio

KEY = key_of(b"content")


async def test_a_repository_with_one_lock_gets_one_request_of_any_kind_at_a_time() -> None:
    # The session inside refuses a second request while it is busy.
    inside, turn = FakeSession(Peer(1)), anyio.Lock()
    done: list[str] = []

    async def ask_everything(name: str) -> None:
        session = OneAtATime(inside, turn)
        await session.store(KEY, AssociatedFile(""), Content(b"content", repeatable=True))
        await session.check_present(KEY)
        await session.check_all([KEY, KEY])
        async with session.lock(KEY):
            pass
        async with session.download(KEY, AssociatedFile("")):
            pass
        await session.remove(KEY)
        done.append(name)

    async with anyio.create_task_group() as tasks:
        for name in ("one", "other"):
            tasks.start_soon(ask_everything, name)
    assert sorted(done) == ["one", "other"]
