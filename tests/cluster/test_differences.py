"""With a node unavailable: git-annex's own gateway and ours in the same situation, as in docs/differences.md."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cluster_remote.p2p.client import StreamSession
from cluster_remote.p2p.errors import ConnectionLost, Refused, TimedOut
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.session import Stored
from cluster_remote.transport.address import Directory
from cluster_remote.transport.opening import Caller, stream_session
from tests.cluster.real import FILE, content, key_of, serving, stopped, uuids, write
from tests.support.repositories import Cluster, locked
from tests.support.slow import only_in_all

pytestmark = pytest.mark.anyio

CONTENT = content(100_000)
KEY = key_of(CONTENT)
UNREACHABLE = pytest.raises(ConnectionLost, match="Unable to connect to remote")

# Has `cluster-remote serve` answer where git-annex-shell would answer for the cluster.
OURS = """\
#!/bin/sh
for last; do :; done
if [ "$1" = p2pstdio ] && [ "$last" = {cluster} ] && [ -z "$BEHIND_THE_GATEWAY" ]; then
  cd "$2" && BEHIND_THE_GATEWAY=1 exec cluster-remote serve --stdio --timeout 4
fi
exec {real} "$@"
"""


@pytest.fixture(params=[*only_in_all(False), True], ids=["git-annex", "ours"])
def ours(request: pytest.FixtureRequest, cluster: Cluster) -> bool:
    """Whether the gateway is ours, or else git-annex's."""
    if request.param:
        environment = cluster.gateway.environment
        real = environment.which("git-annex-shell")
        environment.program("git-annex-shell", OURS.format(cluster=cluster.uuid, real=real))
    return bool(request.param)


@asynccontextmanager
async def through_the_gateway(cluster: Cluster, timeout: float = 20.0) -> AsyncIterator[StreamSession]:
    with cluster.gateway.environment.applied():
        caller = Caller(UUID(cluster.nodes[0].uuid), timeout)
        session = stream_session(Directory(str(cluster.gateway.path)), caller, server=UUID(cluster.uuid))
        try:
            yield session
        finally:
            await session.aclose()


@pytest.fixture
def source(cluster: Cluster) -> FileSource:
    return FileSource(os.fsencode(write(cluster.gateway.environment, CONTENT)))


def log(cluster: Cluster) -> set[str]:
    return cluster.gateway.locations(KEY.text)


async def fetched(session: StreamSession) -> bytes:
    async with session.download(KEY, FILE) as download:
        return b"".join([bytes(chunk) async for chunk in download.chunks()])


async def removed(session: StreamSession) -> tuple[bool, frozenset[UUID]]:
    removal = await session.remove(KEY)
    return removal.removed, removal.uuids


@pytest.mark.slow
async def test_an_upload_with_one_node_gone(cluster: Cluster, ours: bool, source: FileSource) -> None:
    async with through_the_gateway(cluster) as session:
        with cluster.nodes[1].unplugged():
            if ours:
                present = uuids(cluster.nodes[0], cluster.nodes[2])
                assert await session.store(KEY, FILE, source) == Stored(True, present)
            else:
                with UNREACHABLE:
                    await session.store(KEY, FILE, source)
    assert cluster.holders(KEY.text) == [ours, False, ours]
    assert log(cluster) == ({cluster.nodes[0].uuid, cluster.nodes[2].uuid} if ours else set())


@pytest.mark.slow
async def test_a_removal_with_one_node_gone(cluster: Cluster, ours: bool, source: FileSource) -> None:
    async with through_the_gateway(cluster) as session:
        await session.store(KEY, FILE, source)
    async with through_the_gateway(cluster) as session:
        with cluster.nodes[1].unplugged():
            if ours:
                assert await removed(session) == (False, uuids(cluster.nodes[0], cluster.nodes[2]))
            else:
                # Nodes that come before that one in its order may have removed it, and nobody is told.
                with UNREACHABLE:
                    await session.remove(KEY)
    assert cluster.nodes[1].uuid in log(cluster)
    assert cluster.nodes[1].has_object(KEY.text)


@pytest.mark.slow
async def test_a_removal_with_one_node_stalled(cluster: Cluster, ours: bool, source: FileSource) -> None:
    async with through_the_gateway(cluster, timeout=20.0 if ours else 3.0) as session:
        await session.store(KEY, FILE, source)
        with stopped(serving(cluster.nodes[1])):
            if ours:
                assert await removed(session) == (False, uuids(cluster.nodes[0], cluster.nodes[2]))
            else:
                with pytest.raises(TimedOut):
                    await session.remove(KEY)
    assert cluster.nodes[1].has_object(KEY.text)


@pytest.mark.slow
async def test_a_removal_from_a_node_without_a_remote_at_the_gateway(
    cluster: Cluster, ours: bool, source: FileSource
) -> None:
    async with through_the_gateway(cluster) as session:
        await session.store(KEY, FILE, source)
    cluster.gateway.git("remote", "remove", "node2")
    async with through_the_gateway(cluster) as session:
        removal = await removed(session)
    assert removal == (not ours, uuids(cluster.nodes[0], cluster.nodes[2]))
    assert cluster.holders(KEY.text) == [False, True, False]
    assert log(cluster) == {cluster.nodes[1].uuid}


@pytest.mark.slow
async def test_reading_with_the_cheapest_node_gone(cluster: Cluster, ours: bool, source: FileSource) -> None:
    cluster.gateway.git("config", "remote.node2.annex-cost", "50")
    async with through_the_gateway(cluster) as session:
        await session.store(KEY, FILE, source)
    async with through_the_gateway(cluster) as session:
        with cluster.nodes[1].unplugged():
            if ours:
                assert await session.check_present(KEY)
                assert await fetched(session) == CONTENT
            else:
                with UNREACHABLE:
                    await session.check_present(KEY)
                with UNREACHABLE:
                    await fetched(session)


async def test_a_session_opened_before_a_node_came_back(cluster: Cluster, ours: bool, source: FileSource) -> None:
    async with through_the_gateway(cluster) as session:
        with cluster.nodes[1].unplugged():
            assert await session.check_present(KEY) is False
        if ours:
            assert await session.store(KEY, FILE, source) == Stored(True, uuids(*cluster.nodes))
        else:
            with UNREACHABLE:
                await session.store(KEY, FILE, source)


async def test_a_disk_unplugged_under_an_open_session(cluster: Cluster, ours: bool, source: FileSource) -> None:
    async with through_the_gateway(cluster) as session:
        await session.store(KEY, FILE, source)
        everywhere = uuids(*cluster.nodes)
        left = uuids(cluster.nodes[1]) if ours else frozenset()
        with cluster.nodes[1].unplugged():
            removal = await removed(session)
    assert removal == (not ours, everywhere - left)
    assert log(cluster) == {uuid.text for uuid in left}
    assert cluster.holders(KEY.text) == [False, True, False]


async def test_an_encrypted_upload_after_an_interrupted_one(cluster: Cluster, ours: bool, source: FileSource) -> None:
    key = Key(f"GPGHMACSHA1--{'ab' * 20}")
    # Encrypting the same file again gives other bytes.
    for node in cluster.nodes:
        node.leave_partial(key.text, b"x" * 70_000)
    async with through_the_gateway(cluster) as session:
        if ours:
            assert await session.store(key, FILE, source) == Stored(True, uuids(*cluster.nodes))
            assert [node.object_bytes(key.text) for node in cluster.nodes] == [CONTENT] * 3
        else:
            # The client has to see that the gateway asks for the rest of another encryption.
            with pytest.raises(Refused, match="a partial upload of this encrypted content"):
                await session.store(key, FILE, source)
    assert cluster.holders(key.text) == [ours] * 3


@pytest.mark.usefixtures("ours")
async def test_a_reachable_node_that_does_not_remove_makes_the_removal_partial_with_either_gateway(
    cluster: Cluster, source: FileSource
) -> None:
    async with through_the_gateway(cluster) as session:
        await session.store(KEY, FILE, source)
        with locked(cluster.nodes[1], KEY.text):
            removal = await removed(session)
    assert removal == (False, uuids(cluster.nodes[0], cluster.nodes[2]))
