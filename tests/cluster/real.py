"""Cluster sessions with real nodes."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from cluster_remote.annex.locationlog import LocationLog
from cluster_remote.annex.repository import Repository as AnnexRepository
from cluster_remote.cluster.opening import open_cluster
from cluster_remote.cluster.session import ClusterSession
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.messages import Message
from cluster_remote.transport.opening import Caller
from tests.support.environment import Environment
from tests.support.processes import Process
from tests.support.repositories import Repository

FILE = AssociatedFile("some file")


def content(size: int, seed: bytes = b"") -> bytes:
    """Bytes in which no part is like another."""
    blocks = range(size // 32 + 1)
    return b"".join(hashlib.sha256(seed + str(block).encode()).digest() for block in blocks)[:size]


def key_of(data: bytes) -> Key:
    return Key(f"SHA256-s{len(data)}--{hashlib.sha256(data).hexdigest()}")


@asynccontextmanager
async def opened(
    gateway: Repository,
    wanted: str | None = None,
    *,
    timeout: float = 30.0,
    bypass: frozenset[UUID] = frozenset(),
    said: list[tuple[bool, Message]] | None = None,
) -> AsyncIterator[ClusterSession]:
    """Open a session with the cluster of a repository, recording in that repository's log.

    `said` gets the messages that went out (True) to nodes, and came in.
    """
    with gateway.environment.applied(gateway.path):
        repository = AnnexRepository.here()

        def trace(outgoing: bool, message: Message) -> None:
            if said is not None:
                said.append((outgoing, message))

        caller = Caller(repository.uuid, timeout, ssh_command=repository.config().get("core.sshCommand"), trace=trace)
        log = LocationLog(repository)
        session = await open_cluster(repository, wanted, caller, locations=log, record=log, bypass=bypass)
        try:
            yield session
        finally:
            await session.aclose()
            await log.aclose()


def uuids(*repositories: Repository) -> frozenset[UUID]:
    return frozenset(UUID(repository.uuid) for repository in repositories)


def serving(node: Repository) -> list[Process]:
    """Return the git-annex-shell processes that serve a node."""
    return [process for process in node.environment.processes() if f"p2pstdio {node.path} " in process.command]


@contextmanager
def stopped(processes: list[Process]) -> Iterator[None]:
    """Stop processes for as long as the context is open; they may be gone in the end."""
    assert processes, "nothing to stop"
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            try:
                os.kill(process.pid, signal.SIGCONT)
            except ProcessLookupError:
                continue


def write(environment: Environment, data: bytes, name: str = "upload") -> Path:
    path = environment.directory / name
    path.write_bytes(data)
    return path
