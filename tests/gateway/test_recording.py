"""What is stored through a gateway soon and reliably appears in the branch that others fetch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from cluster_remote.annex.errors import LocationLogError
from cluster_remote.annex.repository import Repository as AnnexRepository
from cluster_remote.gateway import backend as backend_module
from cluster_remote.gateway import recording
from cluster_remote.gateway.backend import Backend
from cluster_remote.gateway.recording import SharedLog
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.server import Mode
from tests.cluster.fakes import FILE, Content
from tests.support.environment import Environment
from tests.support.repositories import Cluster, Repository, make_repository

pytestmark = pytest.mark.anyio

NODE = UUID("0e15e000-0000-4000-8000-000000000003")


@pytest.fixture(scope="module")
def repository(make_environment: Callable[[], Environment]) -> Repository:
    environment = make_environment()
    return make_repository(environment, environment.directory / "gateway", "gateway")


@asynccontextmanager
async def shared_log(repository: Repository) -> AsyncIterator[SharedLog]:
    with repository.environment.applied(repository.path):
        log = SharedLog(AnnexRepository(repository.path / ".git", repository.path, repository.path))
        try:
            yield log
        finally:
            await log.aclose()
    repository.environment.assert_no_process_left()


def in_branch(repository: Repository, key: Key, uuid: object = NODE) -> bool:
    """Return whether the branch, as others would fetch it, lists the node for the key."""
    log = repository.git("grep", "-h", "-e", str(uuid), "git-annex", "--", f"*{key}.log", check=False)
    return b" 1 " in log.stdout


def a_key(name: str) -> Key:
    return Key(f"WORM-s1--{name}")


async def test_a_commit_moves_the_journal_into_the_branch(repository: Repository) -> None:
    keys = [a_key(f"commit{number}") for number in range(3)]
    async with shared_log(repository) as log:
        for key in keys:
            await log.record(key, present=[NODE])
            assert await log.locations(key) == {NODE}
        assert not any(in_branch(repository, key) for key in keys)
        await log.commit()
        assert all(in_branch(repository, key) for key in keys)
        # And it goes on as before.
        await log.record(keys[0], absent=[NODE])
        assert await log.locations(keys[0]) == frozenset()
        await log.commit()
        assert not in_branch(repository, keys[0])


async def test_a_commit_waits_for_a_running_one(repository: Repository) -> None:
    key = a_key("under-way")
    found: list[bool] = []
    async with shared_log(repository) as log:
        await log.record(key, present=[NODE])

        async def commit() -> None:
            await log.commit()
            found.append(in_branch(repository, key))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(commit)
    assert found == [True, True, True]


async def test_concurrent_recording_during_a_commit_loses_nothing(repository: Repository) -> None:
    keys = [a_key(f"many{number}") for number in range(40)]
    async with shared_log(repository) as log:

        async def record(key: Key) -> None:
            await log.record(key, present=[NODE])

        async with anyio.create_task_group() as tasks:
            for number, key in enumerate(keys):
                tasks.start_soon(record, key)
                if number % 10 == 9:
                    await log.commit()
    assert all(in_branch(repository, key) for key in keys)


async def test_closing_commits_the_journal(repository: Repository) -> None:
    key = a_key("closed")
    async with shared_log(repository) as log:
        await log.record(key, present=[NODE])
    assert in_branch(repository, key)


async def test_the_journal_is_committed_when_idle(repository: Repository) -> None:
    keys = [a_key("rest1"), a_key("rest2")]
    async with shared_log(repository) as log, anyio.create_task_group() as tasks:
        tasks.start_soon(log.commit_in_time, pytest.fail)
        for key in keys:
            await log.record(key, present=[NODE])
            with anyio.fail_after(20):
                while not in_branch(repository, key):
                    await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()


async def test_the_journal_is_committed_even_without_idle_time(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_LONGEST_LAG", 0.5)
    first = a_key("restless0")
    async with shared_log(repository) as log, anyio.create_task_group() as tasks:
        tasks.start_soon(log.commit_in_time, pytest.fail)
        await log.record(first, present=[NODE])
        with anyio.fail_after(20):
            number = 0
            while not in_branch(repository, first):
                number += 1
                await log.record(a_key(f"restless{number}"), present=[NODE])
                await anyio.sleep(0.1)
        tasks.cancel_scope.cancel()


async def test_nodes_commit_their_logs_while_clients_stay(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is away by then, which is reported and does not keep the others from it."""
    monkeypatch.setattr(backend_module, "_MOST_UNCOMMITTED", 16)
    told: list[str] = []
    keys = [Key(f"WORM-s8-m1--stored{number}") for number in range(2)]
    gateway = cluster.gateway
    with gateway.environment.applied(gateway.path):
        repository = AnnexRepository(gateway.path / ".git", gateway.path, gateway.path)
        backend = Backend(repository, UUID(gateway.uuid), UUID(cluster.uuid))
        session = await (await backend.endpoint(None, None, Mode.READ_WRITE)).session(frozenset())
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(backend.commit_under_load, told.append)
                for number, key in enumerate(keys):
                    await session.store(key, FILE, Content(f"stored {number}".encode(), repeatable=True))
                assert not any(in_branch(node, key, node.uuid) for node in cluster.nodes for key in keys)
                with cluster.nodes[0].unplugged(), anyio.fail_after(30):
                    while not all(in_branch(node, key, node.uuid) for node in cluster.nodes[1:] for key in keys):
                        await backend.log.record(keys[0], present=[NODE])
                        await anyio.sleep(0.1)
                tasks.cancel_scope.cancel()
        finally:
            await session.aclose()
            await backend.aclose()
    assert len(told) == 1
    assert told[0].startswith("cannot have first disk")


async def test_the_version_of_the_nodes_changes_with_their_configuration_and_not_without(cluster: Cluster) -> None:
    gateway = cluster.gateway
    with gateway.environment.applied(gateway.path):
        repository = AnnexRepository(gateway.path / ".git", gateway.path, gateway.path)
        backend = Backend(repository, UUID(gateway.uuid), UUID(cluster.uuid))
        before = await backend.nodes_version(0)
        (gateway.path / ".git/config").touch()
        assert await backend.nodes_version(0) == before
        gateway.git("config", "remote.node1.annex-readonly", "true")
        configured = await backend.nodes_version(0)
        assert configured != before
        gateway.git("annex", "wanted", cluster.nodes[0].uuid, "anything")
        assert await backend.nodes_version(1000) == configured
        assert await backend.nodes_version(0) != configured
        await backend.aclose()


async def test_a_failed_commit_is_reported_and_recording_continues(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    key = a_key("failing")
    async with shared_log(repository) as log, anyio.create_task_group() as tasks:
        really = log.commit
        failures = [LocationLogError("no room")]

        async def commit() -> None:
            if failures:
                raise failures.pop()
            await really()

        monkeypatch.setattr(log, "commit", commit)
        tasks.start_soon(log.commit_in_time, told.append)
        await log.record(key, present=[NODE])
        with anyio.fail_after(20):
            while not told:
                await anyio.sleep(0.05)
            await log.record(a_key("after-failing"), present=[NODE])
            while not in_branch(repository, key):
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()
    assert told == ["cannot commit the location log: no room"]
