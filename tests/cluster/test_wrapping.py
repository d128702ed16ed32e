"""Sessions that wrap other sessions."""

from __future__ import annotations

import anyio
import pytest

from cluster_remote.cluster import wrapping
from cluster_remote.cluster.wrapping import LocalReads, Serialised
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.messages import Get, Message
from cluster_remote.transport.address import Directory
from cluster_remote.transport.opening import Caller, session_at
from tests.support.repositories import Cluster

from .fakes import Content, FakeSession, Peer, key_of

pytestmark = pytest.mark.anyio

KEY = key_of(b"content")


async def test_a_repository_with_a_global_lock_gets_one_request_at_a_time() -> None:
    # The session inside refuses a second request while it is busy.
    inside, turn = FakeSession(Peer(1)), anyio.Lock()
    done: list[str] = []

    async def ask_everything(name: str) -> None:
        session = Serialised(inside, turn)
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
async def test_small_content_on_a_local_disk_is_read_directly_after_the_node_answers(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    monkeypatch.setattr(wrapping, "is_local", lambda place: local)
    node, asked = cluster.nodes[0], list[Message]()
    place = str(node.path)
    backends = ("SHA256", "WORM", "MD5E")
    keys = [node.add(f"file {n}", b"content %d" % n, backend) for n, backend in enumerate(backends)]
    good, odd, damaged = map(Key, keys)
    node.damage_object(keys[2])
    caller = Caller(UUID(cluster.gateway.uuid), trace=lambda outgoing, message: asked.append(message))

    async def got(key: Key, offset: int = 0) -> tuple[bytes, bool]:
        async with session.download(key, AssociatedFile(), offset) as download:
            return b"".join([bytes(chunk) async for chunk in download.chunks()]), await download.valid()

    def gets() -> int:
        return sum(isinstance(message, Get) for message in asked)

    with node.environment.applied(cluster.gateway.path):
        session = LocalReads(session_at(Directory(place), caller), place)
        assert session.pipelines_checks
        try:
            assert await got(good) == (b"content 0", True)
            assert gets() == 1
            assert await got(good, 3) == (b"tent 0", True)
            assert await got(good, 9) == (b"", True)
            assert gets() == (1 if local else 3)
            # Nobody can tell here whether these are right, so the node is asked.
            before = gets()
            assert await got(odd) == (b"content 1", True)
            assert (await got(damaged))[0] != b"content 2"
            assert gets() == before + 2
        finally:
            await session.aclose()


async def test_the_disk_is_asked_for_small_content_only(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large, sizeless, unverifiable = (
        Key(f"{start}--{64 * '0'}") for start in ("SHA256-s1000000", "SHA256-s1100000", "SHA256", "WORM-s1")
    )
    asked: list[Key] = []

    async def ask_disk(read: object, key: Key, checksum: object) -> None:
        asked.append(key)

    monkeypatch.setattr(wrapping, "ask_disk", ask_disk)
    monkeypatch.setattr(wrapping, "is_local", lambda place: True)
    session = LocalReads(FakeSession(Peer(1)), "/nowhere")
    for key in (small, large, sizeless, unverifiable):
        assert await session.read_small(key) is None
    assert asked == [small]
