"""Hold the state of a running remote: its sessions, the repository, and its logs."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING

import anyio

from cluster_remote.access.configuration import is_accepted
from cluster_remote.access.identity import believed, display_name, wanted_server
from cluster_remote.access.local import way_of
from cluster_remote.access.settings import Settings
from cluster_remote.access.ways import Serverless, Way
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.locationlog import LocationLog
from cluster_remote.annex.repository import Repository
from cluster_remote.annex.verification import verified
from cluster_remote.cluster.opening import resolved
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.cluster.routing import absent_where_reachable
from cluster_remote.limits import sessions_that_fit
from cluster_remote.p2p.checksum import Checksum
from cluster_remote.p2p.errors import Damaged, SessionError, TimedOut, Unreachable
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Progress, Session
from cluster_remote.p2p.stream import Trace
from cluster_remote.p2p.text import as_command
from cluster_remote.remote.agreement import retrieve_agreed
from cluster_remote.remote.causes import Causes
from cluster_remote.remote.chunks import stored_as
from cluster_remote.remote.fetched import FetchedBefore
from cluster_remote.remote.gateway_nodes import GatewayNodes
from cluster_remote.remote.pool import SessionPool
from cluster_remote.remote.retrieval import (
    NotRetrieved,
    is_verified_here,
    retrieve,
    retrieve_apart,
    retrieve_whole,
)
from cluster_remote.transport.opening import Caller

if TYPE_CHECKING:
    from cluster_remote.annex.filenames import FileNames

__all__ = ["Context"]


class Aborted(SessionError):
    """git-annex has exited, so the request was cancelled."""


# Seconds for which a lookup in the location log stays valid.
_LOOKUP_AGE = 0.1


class _CachedLog(LocationLog):
    """The location log, with its last lookup cached for a moment.

    git-annex checks whether content is present and stores it right after that; both need the log.
    """

    _last: tuple[Key, float, frozenset[UUID]] | None = None
    _records = 0

    async def locations(self, key: Key, timeout: float = 30.0) -> frozenset[UUID]:
        if self._last is not None:
            known, since, found = self._last
            if known == key and time.monotonic() - since < _LOOKUP_AGE:
                return found
        before = self._records
        found = await super().locations(key, timeout)
        # A lookup during a recording may be outdated.
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
            # Another task may have read the log meanwhile.
            self._forget()

    def _forget(self) -> None:
        self._last = None
        self._records += 1


class Context:
    """Created by the first request that needs it, closed when git-annex hangs up. Supports concurrent requests."""

    repository: Repository
    logs: BranchLogs
    config: GitConfig
    _sessions: SessionPool
    server: UUID | None
    """The repository requested behind the address; None for the one at the address."""

    def __init__(self, settings: Settings, gitdir: str, token: str | None) -> None:
        self.settings = settings
        self._gitdir = gitdir
        self._token = token
        self.gateway_nodes = GatewayNodes(self._session_with_node)
        self.causes = Causes()
        self._logs_reread = False
        self._location_log: _CachedLog | None = None
        self._file_names: FileNames | None = None
        self._reachability = Reachability()
        self._ready = False
        self._preparing = anyio.Lock()
        self._requests: set[anyio.CancelScope] = set()

    @asynccontextmanager
    async def request(self, trace: Trace | None = None) -> AsyncIterator[Session]:
        """Lend a session for one request; it connects on first use. `trace` receives its messages."""
        with anyio.CancelScope() as scope:
            self._requests.add(scope)
            try:
                if not self._ready:
                    await self._prepare()
                async with self._sessions.lend(trace) as session:
                    yield session
            finally:
                self._requests.discard(scope)
        if scope.cancelled_caught:
            raise Aborted("aborted, because git-annex has exited")

    async def _prepare(self) -> None:
        async with self._preparing:
            if not self._ready:
                await self.read_repository()
                self.server = wanted_server(self.settings, self.logs, self.config.clusters())
                nodes = len(self.way.membership.members) if isinstance(self.way, Serverless) else 1
                self._sessions = SessionPool(
                    lambda trace: self.session_with(self.server, trace), max(sessions_that_fit(nodes), 1)
                )
                self._ready = True

    def cancel_requests(self) -> None:
        """Cancel every running request."""
        for scope in self._requests:
            scope.cancel()

    async def read_repository(self) -> None:
        """Read the configuration and the logs, without a session."""
        self.repository = Repository.of_remote(self._gitdir)
        self.config = await resolved(await self.repository.current_config(), self.repository)
        self.logs = await BranchLogs.read(self.repository)
        self._fetched = FetchedBefore(self.repository.common_dir / "cluster-remote" / "fetched")

    @property
    def accepted(self) -> bool:
        """Return whether the user has accepted the configuration of this remote."""
        return is_accepted(self.settings.name, self.config, verified(self.repository))

    @cached_property
    def way(self) -> Way:
        """Return the way to the remote's cluster. Raises NoCluster."""
        shared = not self.config.boolean(f"remote.{self.settings.name}.annex-private")
        caller = Caller.of(self.repository, self.config, self.settings.timeout)
        return way_of(self.settings, caller, self.config, self.logs, self._token, shared=shared)

    async def session_with(self, server: UUID | None, trace: Trace | None = None) -> Session:
        """Return a session with a repository behind the remote's address; None: the one at the address."""
        if not isinstance(self.way, Serverless):
            return self.way.session(server, trace)
        # For a remote that counts as one copy, no log tracks which node has what.
        log = self._locations() if self.settings.tracking == "nodes" else None
        # The remote itself records uploads, at the last moment.
        return self.way.cluster_session(
            trace, locations=log, record=log, record_uploads=False, reachability=self._reachability
        )

    async def _session_with_node(self, node: UUID, trace: Trace) -> Session:
        try:
            return self.way.node(node, trace)
        except ValueError as error:
            raise Unreachable(str(error)) from None

    def _locations(self) -> _CachedLog:
        if self._location_log is None:
            # With annex.pidlock, git-annex holds its lock while it waits for us.
            locked = self.config.boolean("annex.pidlock")
            self._location_log = _CachedLog(self.repository, self.settings.uuid, locked=locked)
        return self._location_log

    @property
    def counts_nodes(self) -> bool:
        """Return whether the remote is a cluster whose nodes count as copies."""
        return self.settings.tracking == "nodes" and self.settings.uuid.is_cluster

    @property
    def is_serverless(self) -> bool:
        """Return whether the remote is a cluster of this repository."""
        return isinstance(self.way, Serverless)

    @property
    def is_cluster(self) -> bool:
        """Return whether the remote leads to a cluster rather than a single repository."""
        return self.is_serverless or (self.server is not None and self.server.is_cluster)

    def expect_to_record(self) -> None:
        """Prepare in the background for recording soon."""
        if self.settings.tracking == "nodes":
            self._locations().expect()

    async def record(self, key: Key, present: Collection[UUID] = (), absent: Collection[UUID] = ()) -> None:
        """Record where the content is now, unless the remote counts as one copy. Raises LocationLogError."""
        if self.settings.tracking == "nodes":
            await self._locations().record(key, present, absent)

    async def believed(self, named: frozenset[UUID]) -> tuple[frozenset[UUID], frozenset[UUID]]:
        """Split the repositories named in an answer into those that may be recorded, and the others."""
        if self.settings.tracking == "remote":
            return frozenset(uuid for uuid in named if not uuid.is_cluster), frozenset()
        ours, others = believed(named, self.settings.uuid, self.logs, self.repository.uuid)
        if others and not self._logs_reread:
            # A node may have been added since.
            self._logs_reread = True
            self.logs = await BranchLogs.read(self.repository)
            ours, others = believed(named, self.settings.uuid, self.logs, self.repository.uuid)
        return ours, others

    def name_of(self, uuid: UUID) -> str:
        """Return a repository's display name."""
        return display_name(uuid, self.logs.descriptions)

    def cluster_name(self) -> str:
        """Return the gateway's name for the cluster, or its description."""
        server = self.server
        if server is None:
            return "none: a single repository"
        for names in [self.config.clusters(), *self.logs.proxied.values()]:
            for name, uuid in names.items():
                if uuid == server:
                    return name
        return self.name_of(server)

    def names_of(self, uuids: Iterable[UUID]) -> str:
        """Return the display names of repositories as a list."""
        return ", ".join(sorted(map(self.name_of, uuids)))

    @property
    def nodes(self) -> frozenset[UUID]:
        """Return the cluster's nodes in cluster.log; none if the cluster is not known here."""
        cluster = self.settings.uuid if self.counts_nodes else self.server
        return frozenset() if cluster is None else self.logs.clusters.nodes(cluster)

    @property
    def living_nodes(self) -> frozenset[UUID]:
        """Return the nodes that are not dead."""
        return frozenset(node for node in self.nodes if self.logs.trust.get(node) != "dead")

    async def nodes_with(self, key: Key) -> frozenset[UUID]:
        """Return the nodes that have the content according to the location log."""
        return await self._locations().locations(key) & self.nodes

    async def file_of(self, key: Key) -> AssociatedFile:
        """Return the file in this work tree with this key, if a node's rules may depend on it; otherwise none.

        Reveals nothing about encrypted content or chunks. Raises CommandFailed.
        """
        # If the cluster is not known here, only its gateway knows whether its nodes have rules.
        nodes = self.living_nodes
        matters = self.is_cluster and (not nodes or self.logs.has_preferred_content(nodes))
        if not matters or key.is_chunk or key.is_encrypted:
            return AssociatedFile()
        if self._file_names is None:
            from cluster_remote.annex.filenames import FileNames

            self._file_names = FileNames(self.repository)
        return await self._file_names.of(key)

    async def _holders(self, key: Key) -> frozenset[UUID]:
        """Return the living nodes that should have content; all of them if no log tracks it."""
        return self.living_nodes & (await self.nodes_with(key) if self.counts_nodes else self.nodes)

    async def is_present(self, session: Session, key: Key) -> bool:
        """Return whether any node that should have content has it. Raises SessionError if that is unknown.

        git-annex's own gateway asks only one node. If that says no, the others are asked individually through the
        gateway.
        """
        stored = stored_as(key)
        failure: SessionError | None = None
        try:
            if await session.check_present(stored):
                return True
        except SessionError as error:
            if self.is_serverless or isinstance(error, Unreachable):
                raise
            failure = error
        if self.is_serverless:
            return False
        holders = await self._holders(key)
        found, failures = await self.gateway_nodes.first(holders, lambda node: node.check_present(stored))
        if found is not None:
            return True
        if failure is not None:
            raise failure
        if failures and (self.counts_nodes or not absent_where_reachable([False, *failures.values()])):
            reasons = "; ".join(sorted(f"{self.name_of(node)}: {error}" for node, error in failures.items()))
            raise SessionError(
                f"{session.name} does not have {key}, but cannot tell whether other nodes have it: {reasons}"
            )
        return False

    async def fetch(
        self, session: Session, key: Key, path: bytes, progress: Progress, tell: Callable[[str], None]
    ) -> None:
        """Download content; if it arrives damaged, try one node after the other until one sends a good copy.

        `tell` receives a message about a damaged copy. Raises NotRetrieved, CannotWrite, SessionError.
        """
        stored = stored_as(key)
        again = self._fetched.times(key)
        has_checksum = Checksum.of(stored) is not None
        if again and not has_checksum and self.is_cluster:
            self._fetched.add(key)
            if await retrieve_agreed(self.gateway_nodes, await self._holders(key), stored, again - 1, path, progress):
                return
        by_git_annex = stored.is_verifiable and not is_verified_here(stored) and not (has_checksum and again)
        check = as_command("cluster-remote check", self.settings.name, options="--content --fix")
        remedy = f"to find and replace it: {check}, then repair"

        async def get(session: Session) -> None:
            verified = False
            if not stored.is_verifiable:
                await retrieve_apart(session, stored, path, progress)
            elif not by_git_annex:
                await retrieve_whole(session, stored, path, progress)
            else:
                verified = (await retrieve(session, stored, path, progress, spread=True)).verified
            if (by_git_annex and not verified) or key.is_encrypted:
                self._fetched.add(key)

        origin: UUID | None = None
        try:
            await get(session)
            return
        except Damaged as damaged:
            if by_git_annex:
                # git-annex has already hashed the growing file, so damaged content cannot be replaced now. When it asks
                # again, each node is asked individually.
                self._fetched.add(key)
                raise Damaged(f"{damaged}; {remedy}") from None
            failures: list[SessionError] = [damaged]
            origin = damaged.origin
            where = session.name if origin is None else self.name_of(origin)
            tell(f"{where} sent a damaged copy; {remedy}")
        except SessionError as error:
            if self.is_serverless or isinstance(error, Unreachable):
                raise
            # git-annex's own gateway asks only one node.
            failures = [error]
        await self._fetch_from_each(stored, await self._holders(key) - {origin}, get, failures)

    async def _fetch_from_each(
        self,
        stored: Key,
        nodes: frozenset[UUID],
        get: Callable[[Session], Awaitable[None]],
        failures: list[SessionError],
    ) -> None:
        """Call `get` with one node after the other until it succeeds. Raises SessionError, with all failures."""
        while nodes:
            node, _ = await self.gateway_nodes.first(nodes, lambda single: single.check_present(stored))
            if node is None:
                break
            nodes -= {node}
            try:
                async with self.gateway_nodes.session(node) as single:
                    await get(single)
                    return
            except SessionError as error:
                failures.append(error)
                if isinstance(error, TimedOut):
                    break
        if len(failures) == 1:
            raise failures[0]
        raise NotRetrieved("; ".join(map(str, failures)))

    async def fetch_from_one(self, session: Session, key: Key, path: bytes, progress: Progress) -> UUID | None:
        """Download content to be checked, from a single repository if possible; return that, or None if unknown.

        Behind a gateway, asks each node that should have it individually, in the order of their names.
        """
        known = frozenset() if self.is_serverless else await self._holders(key)
        for node in sorted(known, key=lambda node: (self.name_of(node), node)):
            with suppress(SessionError):
                async with self.gateway_nodes.session(node) as single:
                    await retrieve(single, stored_as(key), path, progress)
                    return node
            # Do not resume one node's download from another.
            with suppress(FileNotFoundError):
                os.truncate(path, 0)
        return (await retrieve(session, stored_as(key), path, progress)).origin

    async def aclose(self) -> None:
        """Close everything. Bounded in time."""
        if self._ready:
            await self._sessions.aclose()
        await self.gateway_nodes.aclose()
        if self._location_log is not None:
            await self._location_log.aclose()
