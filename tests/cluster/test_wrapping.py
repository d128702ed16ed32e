"""Sessions around sessions."""

from __future__ import annotations

import anyio
import pytest

from cluster_remote.cluster import wrapping
from cluster_remote.cluster.wrapping import AtHand, OneAtATime
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.transport.address import Directory
from cluster_remote.transport.opening import Caller, session_at
from tests.support.repositories import Cluster

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


@pytest.mark.parametrize("local", [True, False])
async def test_a_content_on_a_local_disk_is_read_once_the_node_has_answered(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    monkeypatch.setattr(wrapping, "is_local", lambda place: local)
    node = cluster.nodes[0]
    key = Key(node.add("file", b"content"))
    place = str(node.path)
    with node.environment.applied(cluster.gateway.path):
        session = AtHand(session_at(Directory(place), Caller(UUID(cluster.gateway.uuid))), place)
        assert session.asks_ahead
        assert await session.at_hand(key) is None
        try:
            await session.open()
            assert await session.at_hand(key) == (b"content" if local else None)
            assert await session.at_hand(Key("SHA256--0")) is None
        finally:
            await session.aclose()
        assert await session.at_hand(key) is None
