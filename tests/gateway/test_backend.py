"""Which clients of a gateway share sessions, and which changes of the nodes end these."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cluster_remote.annex import repository as repository_module
from cluster_remote.annex.repository import Repository as AnnexRepository
from cluster_remote.gateway.backend import Backend
from cluster_remote.gateway.budget import DescriptorBudget
from cluster_remote.gateway.sessions import SessionPool
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.server import Mode
from tests.cluster.fakes import FILE
from tests.support.repositories import Cluster

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def backend_of(cluster: Cluster) -> AsyncIterator[Backend]:
    gateway = cluster.gateway
    with gateway.environment.applied(gateway.path):
        repository = AnnexRepository(gateway.path / ".git", gateway.path, gateway.path)
        backend = Backend(repository, UUID(gateway.uuid), UUID(cluster.uuid))
        try:
            yield backend
        finally:
            await backend.aclose()


async def test_the_gateway_s_own_repository_knows_which_client_it_sends_to(cluster: Cluster) -> None:
    """`git annex info` lists the transfers in progress with their clients."""
    gateway = cluster.gateway
    key = gateway.add("file", b"content")
    clients = [UUID(f"c11e0000-0000-4000-8000-00000000000{number}") for number in (1, 2)]
    async with backend_of(cluster) as backend:
        pool = SessionPool(DescriptorBudget(), backend.node_count, backend.nodes_version)
        try:
            for client in clients:
                endpoint = await backend.endpoint(backend.own, client, Mode.READ_WRITE)
                session = await pool.session(endpoint, "token", frozenset())
                async with session.download(Key(key), FILE):
                    assert (gateway.path / ".git/annex/transfer/upload" / str(client)).is_dir()
        finally:
            await pool.aclose()


async def test_every_change_that_concerns_the_nodes_makes_another_version(cluster: Cluster) -> None:
    gateway = cluster.gateway
    async with backend_of(cluster) as backend:
        known = await backend.nodes_version(0)
        for command in (
            ("config", "remote.node1.annex-readonly", "true"),
            ("remote", "rename", "node2", "second"),
            ("annex", "wanted", "node1", "standard"),
            ("annex", "group", "node1", "backup"),
            ("annex", "groupwanted", "backup", "anything"),
            ("annex", "numcopies", "2"),
            ("annex", "untrust", "node3"),
        ):
            gateway.git(*command)
            version = await backend.nodes_version(0)
            assert version != known, command
            known = version


async def test_other_changes_make_no_other_version(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository_module, "_CONFIG_AGE", 0.0)
    async with backend_of(cluster) as backend:
        known = await backend.nodes_version(0)
        (cluster.gateway.path / ".git" / "config").touch()
        await backend.log.record(Key("WORM-s1--recorded"), present=[UUID(cluster.nodes[0].uuid)])
        assert await backend.nodes_version(0) == known
