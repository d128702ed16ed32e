"""What a running remote works with: its sessions, the repository, its logs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property

import anyio

from cluster_remote.access.configuration import is_accepted
from cluster_remote.access.identity import names_of, wanted_server
from cluster_remote.access.place import caller_of, way_of
from cluster_remote.access.settings import Settings
from cluster_remote.access.ways import Serverless, ThroughGateway, Way
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.locationlog import LocationLog
from cluster_remote.annex.repository import Repository
from cluster_remote.annex.verification import verified
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.session import Removal, Session
from cluster_remote.p2p.stream import Trace
from cluster_remote.remote.pool import SessionPool

__all__ = ["Context", "Remaining"]


class GivenUp(SessionError):
    """Nobody is left who wants to know the answer."""


# Seconds for asking one node why it did not remove a content.
_EXPLAIN_TIMEOUT = 10.0
# Seconds for which a look at the location log is good.
_A_MOMENT = 0.1
# How many nodes are asked at the same time: an ssh server may not take more connections at once.
_EXPLAIN_AT_ONCE = 8


@dataclass(frozen=True)
class Remaining:
    """What is known of the nodes that a removal left out: in words, and for the location log."""

    words: str
    present: frozenset[UUID] = frozenset()
    absent: frozenset[UUID] = frozenset()


class _Log(LocationLog):
    """The location log; what it said of the last key that was looked up is remembered for a moment.

    git-annex asks whether a content is there and has it stored right after that; each takes a look at the log.
    """

    _last: tuple[Key, float, frozenset[UUID]] | None = None
    _records = 0

    async def locations(self, key: Key, timeout: float = 30.0) -> frozenset[UUID]:
        if self._last is not None:
            known, since, found = self._last
            if known == key and time.monotonic() - since < _A_MOMENT:
                return found
        before = self._records
        found = await super().locations(key, timeout)
        # What was read while something was recorded may be older than that.
        if self._records == before:
            self._last = key, time.monotonic(), found
        return found

    async def record(
        self, key: Key, present: Collection[UUID] = (), absent: Collection[UUID] = (), timeout: float = 30.0
    ) -> None:
        self._forget()
        try:
            await super().record(key, present, absent, timeout)
        finally:
            # Somebody may have looked meanwhile.
            self._forget()

    def _forget(self) -> None:
        self._last = None
        self._records += 1


class Context:
    """Made by the first request that needs it, closed when git-annex hangs up. Any number of requests at once."""

    repository: Repository
    logs: BranchLogs
    config: GitConfig
    server: UUID | None
    """The repository that is asked for behind the address; None for the one that is there."""

    def __init__(self, settings: Settings, gitdir: str, token: str | None) -> None:
        self.settings = settings
        self._gitdir = gitdir
        self._token = token
        self._sessions = SessionPool(lambda trace: self.session_with(self.server, trace))
        self._location_log: _Log | None = None
        self._reachability = Reachability()
        self._ready = False
        self._opening = anyio.Lock()
        self._requests: set[anyio.CancelScope] = set()

    @asynccontextmanager
    async def request(self, trace: Trace | None = None) -> AsyncIterator[Session]:
        """A session for one request; `trace` is told what is said in it. It connects when it is first used."""
        with anyio.CancelScope() as scope:
            self._requests.add(scope)
            try:
                if not self._ready:
                    await self._get_ready()
                async with self._sessions.lend(trace) as session:
                    yield session
            finally:
                self._requests.discard(scope)
        if scope.cancelled_caught:
            raise GivenUp("given up, because git-annex is gone")

    async def _get_ready(self) -> None:
        async with self._opening:
            if not self._ready:
                await self.read_repository()
                self.server = wanted_server(self.settings, self.logs, self.config.clusters())
                self._ready = True

    def cancel_requests(self) -> None:
        """Gives up every request that is under way."""
        for scope in self._requests:
            scope.cancel()

    async def read_repository(self) -> None:
        """Reads the configuration and the logs, without a session."""
        self.repository = Repository.of_remote(self._gitdir)
        self.config = self.repository.config()
        self.logs = await BranchLogs.read(self.repository)

    @property
    def accepted(self) -> bool:
        """Whether the user has accepted the configuration of this remote."""
        return is_accepted(self.settings.name, self.config, verified(self.repository))

    @cached_property
    def way(self) -> Way:
        """The way to the remote's cluster. Raises NoCluster."""
        shared = not self.config.boolean(f"remote.{self.settings.name}.annex-private")
        caller = caller_of(self.repository, self.config, self.settings.timeout)
        return way_of(self.settings, caller, self.config, self.logs, self._token, shared=shared)

    async def session_with(self, server: UUID | None, trace: Trace | None = None) -> Session:
        """A session with a repository behind the remote's address; None: with the one that is there."""
        if not isinstance(self.way, Serverless):
            return self.way.session(server, trace)
        # What a remote that counts as one copy has on which node, no log says.
        log = self._locations() if self.settings.tracking == "nodes" else None
        return self.way.cluster_session(trace, locations=log, record=log, reachability=self._reachability)

    def _locations(self) -> _Log:
        if self._location_log is None:
            self._location_log = _Log(self.repository, self.settings.uuid)
        return self._location_log

    @property
    def counts_nodes(self) -> bool:
        """Whether the remote is a cluster whose nodes are the copies."""
        return self.settings.tracking == "nodes" and self.settings.uuid.is_cluster

    def expect_to_record(self) -> None:
        """Something will be recorded soon: what that takes is started meanwhile."""
        if self.settings.tracking == "nodes":
            self._locations().expect()

    async def record_outcome(self, key: Key, present: Collection[UUID] = (), absent: Collection[UUID] = ()) -> None:
        """Records what a session has done, unless it is the cluster of this repository, which has recorded it itself.

        Not interrupted by cancellation: it is done. Raises LocationLogError.
        """
        if not isinstance(self.way, Serverless):
            with anyio.CancelScope(shield=True):
                await self.record(key, present, absent)

    async def record(self, key: Key, present: Collection[UUID] = (), absent: Collection[UUID] = ()) -> None:
        """Records where the content is now, as far as that is this remote's to say. Raises LocationLogError."""
        if self.settings.tracking == "nodes":
            await self._locations().record(key, present, absent)

    def name_of(self, uuid: UUID) -> str:
        return names_of(uuid, self.logs.descriptions)

    def cluster_name(self) -> str:
        """The cluster by the name that its gateway has for it, or by its description."""
        server = self.server
        if server is None:
            return "none: a single repository"
        for names in [self.config.clusters(), *self.logs.proxied.values()]:
            for name, uuid in names.items():
                if uuid == server:
                    return name
        return self.name_of(server)

    async def nodes_with(self, key: Key) -> frozenset[UUID]:
        """The nodes that have the content, by the location log."""
        return await self._locations().locations(key) & self.logs.clusters.nodes(self.settings.uuid)

    async def explain_remaining(self, key: Key, outcome: Removal) -> Remaining:
        """Which nodes still have a content after a removal that failed in part, and why."""
        if not isinstance(self.way, ThroughGateway):
            # The cluster is right here: it has said of every node what happened.
            return Remaining("; ".join(outcome.reasons) or "a node that is not known here failed")
        known = await self.nodes_with(key)
        # Also those that the log does not name: the gateway goes to all of them, and any may be the one that failed.
        way = self.way.within(min(_EXPLAIN_TIMEOUT, self.settings.timeout))
        left = self.logs.clusters.nodes(self.settings.uuid) - outcome.uuids
        answers: dict[UUID, bool | SessionError] = {}
        slots = anyio.Semaphore(_EXPLAIN_AT_ONCE)
        async with anyio.create_task_group() as tasks:
            for node in sorted(left, key=lambda node: (node not in known, node)):
                tasks.start_soon(self._ask_node, way, key, node, slots, answers)
        words: list[str] = []
        for node, answer in answers.items():
            name = self.name_of(node)
            if isinstance(answer, SessionError):
                words.append(f"{name} could not be asked ({answer})")
            elif answer:
                words.append(
                    f"{name} still has it: it can be reached, but did not remove it (something has the content "
                    f"locked, or the node may not be written to)"
                )
            elif node in known:
                words.append(f"{name} does not have it any more")
        return Remaining(
            "; ".join(sorted(words)) or "; ".join(outcome.reasons) or "the server does not say which node failed",
            present=frozenset(node for node, answer in answers.items() if answer is True),
            absent=frozenset(node for node, answer in answers.items() if answer is False),
        )

    async def _ask_node(
        self,
        way: ThroughGateway,
        key: Key,
        node: UUID,
        slots: anyio.Semaphore,
        answers: dict[UUID, bool | SessionError],
    ) -> None:
        """The gateway does not say why a node failed, or which; so the node is asked, through the gateway."""
        async with slots:
            session = way.node(node)
            try:
                answers[node] = await session.check_present(key)
            except SessionError as error:
                answers[node] = error
            finally:
                await session.aclose()

    async def aclose(self) -> None:
        """Closes everything. Bounded in time."""
        await self._sessions.aclose()
        if self._location_log is not None:
            await self._location_log.aclose()
