"""A cluster of two gateways, each with its own nodes, joined by git annex extendcluster over ssh."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest

from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.messages import Bypass, Message
from cluster_remote.p2p.session import Present, Removal, Stored
from tests.cluster.real import FILE, content, key_of, opened, uuids, write
from tests.support.repositories import Cluster, Repository
from tests.support.ssh import SshServer

pytestmark = pytest.mark.anyio

CONTENT = content(100_000)
KEY = key_of(CONTENT)


@dataclass(frozen=True)
class Extended:
    """`far` is the other gateway, a remote `far` of the first over ssh, with a node that no one else has."""

    near: Cluster
    far: Repository
    far_node: Repository
    ssh: SshServer

    @property
    def nodes(self) -> list[Repository]:
        return [*self.near.nodes, self.far_node]


@pytest.fixture
def extended(cluster: Cluster, ssh_server: SshServer) -> Extended:
    gateway = cluster.gateway
    far, far_node = cluster.clone("far"), cluster.clone("far-node")
    far.git("remote", "set-url", "origin", ssh_server.url(gateway.path))
    far.git("remote", "add", "farnode", far_node.path)
    far.git("fetch", "--quiet", "--all")
    far.annex("extendcluster", "origin", cluster.name)
    far.git("config", "remote.farnode.annex-cluster-node", cluster.name)
    far.annex("updatecluster")
    gateway.git("remote", "add", "far", ssh_server.url(far.path))
    gateway.git("fetch", "--quiet", "far")
    gateway.annex("merge", "--quiet")
    gateway.annex("extendcluster", "far", cluster.name)
    gateway.annex("updatecluster")
    return Extended(cluster, far, far_node, ssh_server)


async def test_requests_reach_the_nodes_of_both_gateways_without_looping(extended: Extended) -> None:
    gateway = extended.near.gateway
    said: list[tuple[bool, Message]] = []
    async with opened(gateway, said=said) as session:
        assert [(node.name, node.kind) for node in session.nodes][-1] == ("far", "gateway")
        before = extended.ssh.connections
        source = FileSource(os.fsencode(write(gateway.environment, CONTENT)))
        assert await session.store(KEY, FILE, source) == Stored(True, uuids(*extended.nodes))
        assert [node.has_object(KEY.text) for node in extended.nodes] == [True] * 4
        assert gateway.locations(KEY.text) == {node.uuid for node in extended.nodes}
        assert await session.store(KEY, FILE, source) == Present(uuids(*extended.nodes))
        assert await session.remove(KEY) == Removal(True, uuids(*extended.nodes))
        assert gateway.locations(KEY.text) == set()
        assert [node.has_object(KEY.text) for node in extended.nodes] == [False] * 4
        # The other gateway would have come back by ssh.
        assert extended.ssh.connections == before + 1
    assert [message for _, message in said if isinstance(message, Bypass)] == [Bypass(uuids(gateway))]


async def test_a_request_from_the_other_gateway_is_not_sent_back_to_it(extended: Extended) -> None:
    async with opened(extended.near.gateway, bypass=uuids(extended.far)) as session:
        before = extended.ssh.connections
        source = FileSource(os.fsencode(write(extended.near.gateway.environment, CONTENT)))
        assert await session.store(KEY, FILE, source) == Stored(True, uuids(*extended.near.nodes))
        assert await session.remove(KEY) == Removal(True, uuids(*extended.near.nodes))
        assert extended.ssh.connections == before


async def test_content_is_read_through_the_other_gateway(extended: Extended) -> None:
    extended.far_node.set_key(KEY.text, CONTENT)
    extended.near.gateway.annex("setpresentkey", KEY.text, extended.far_node.uuid, "1")
    extended.far.annex("setpresentkey", KEY.text, extended.far_node.uuid, "1")
    async with opened(extended.near.gateway) as session:
        assert await session.check_present(KEY)
        async with session.download(KEY, FILE, 10) as download:
            assert b"".join([bytes(chunk) async for chunk in download.chunks()]) == CONTENT[10:]
            assert await download.valid()


async def test_the_near_nodes_keep_working_without_the_other_gateway(extended: Extended) -> None:
    near = uuids(*extended.near.nodes)
    async with opened(extended.near.gateway) as session:
        source = FileSource(os.fsencode(write(extended.near.gateway.environment, CONTENT)))
        await session.store(KEY, FILE, source)
        extended.ssh.stop()
        removal = await session.remove(KEY)
        assert (removal.removed, removal.uuids) == (False, near)
        assert removal.reasons[0].startswith("far (desk) [far]: ")
        assert extended.near.gateway.locations(KEY.text) == {extended.far_node.uuid}
        with pytest.raises(SessionError, match="cannot tell"):
            await session.check_present(KEY)
        stored = await session.store(KEY, FILE, source)
        assert isinstance(stored, Stored)
        assert stored.uuids == near
        extended.ssh.start()
        assert (await session.remove(KEY)).uuids == near | {UUID(extended.far_node.uuid)}
