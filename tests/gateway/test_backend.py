"""Which changes end a gateway's sessions with its nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cluster_remote.annex import repository as repository_module
from cluster_remote.annex.repository import Repository as AnnexRepository
from cluster_remote.gateway.backend import Backend
from cluster_remote.p2p.key import UUID, Key
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
