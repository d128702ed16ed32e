"""What git-annex's own gateway does where a node is away: the same situations, for comparison."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cluster_remote.p2p.client import StreamSession
from cluster_remote.p2p.errors import ConnectionLost, TimedOut
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Stored
from cluster_remote.transport.address import Directory
from cluster_remote.transport.opening import Caller, stream_session
from tests.cluster.real import FILE, content, gone, key_of, serving, stopped, uuids, write
from tests.support.repositories import Cluster, locked

pytestmark = pytest.mark.anyio

CONTENT = content(100_000)
KEY = key_of(CONTENT)


@asynccontextmanager
async def native(cluster: Cluster, timeout: float = 20.0) -> AsyncIterator[StreamSession]:
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


async def test_with_one_node_gone_nothing_is_stored_anywhere(cluster: Cluster, source: FileSource) -> None:
    async with native(cluster) as session:
        with gone(cluster.nodes[1]), pytest.raises(ConnectionLost, match="Unable to connect to remote"):
            await session.store(KEY, FILE, source)
    assert cluster.holders(KEY.text) == [False] * 3
    assert log(cluster) == set()


async def test_with_one_node_gone_a_removal_has_no_answer(cluster: Cluster, source: FileSource) -> None:
    async with native(cluster) as session:
        assert await session.store(KEY, FILE, source) == Stored(True, uuids(*cluster.nodes))
    async with native(cluster) as session:
        with gone(cluster.nodes[1]), pytest.raises(ConnectionLost, match="Unable to connect to remote"):
            await session.remove(KEY)
    # Nodes that come before that one in its order may have removed it, and nobody is told.
    assert cluster.nodes[1].uuid in log(cluster)
    assert cluster.nodes[1].has_object(KEY.text)


async def test_with_the_cheapest_node_gone_nothing_is_read_though_others_have_it(
    cluster: Cluster, source: FileSource
) -> None:
    cluster.gateway.git("config", "remote.node2.annex-cost", "50")
    async with native(cluster) as session:
        await session.store(KEY, FILE, source)
    async with native(cluster) as session:
        with gone(cluster.nodes[1]):
            with pytest.raises(ConnectionLost, match="Unable to connect to remote"):
                await session.check_present(KEY)
            with pytest.raises(ConnectionLost, match="Unable to connect to remote"):
                async with session.download(KEY, FILE):
                    pytest.fail("a node that is gone gave something")


async def test_a_session_that_began_without_a_node_goes_on_to_fail_when_it_is_back(
    cluster: Cluster, source: FileSource
) -> None:
    async with native(cluster) as session:
        with gone(cluster.nodes[1]):
            assert await session.check_present(KEY) is False
        with pytest.raises(ConnectionLost, match="Unable to connect to remote"):
            await session.store(KEY, FILE, source)


async def test_a_disk_that_is_taken_away_from_an_open_session_is_taken_for_an_empty_one(
    cluster: Cluster, source: FileSource
) -> None:
    async with native(cluster) as session:
        await session.store(KEY, FILE, source)
        everywhere = uuids(*cluster.nodes)
        with gone(cluster.nodes[1]):
            removal = await session.remove(KEY)
    assert (removal.removed, removal.uuids) == (True, everywhere)
    assert log(cluster) == set()
    assert cluster.holders(KEY.text) == [False, True, False]


async def test_with_one_node_standing_still_a_removal_has_no_answer(cluster: Cluster, source: FileSource) -> None:
    async with native(cluster, timeout=3.0) as session:
        await session.store(KEY, FILE, source)
        with stopped(serving(cluster.nodes[1])), pytest.raises(TimedOut):
            await session.remove(KEY)
    assert cluster.nodes[1].has_object(KEY.text)


async def test_a_node_that_can_be_asked_but_does_not_remove_makes_the_removal_partial(
    cluster: Cluster, source: FileSource
) -> None:
    async with native(cluster) as session:
        await session.store(KEY, FILE, source)
        with locked(cluster.nodes[1], KEY.text):
            removal = await session.remove(KEY)
    assert (removal.removed, removal.uuids) == (False, uuids(cluster.nodes[0], cluster.nodes[2]))
