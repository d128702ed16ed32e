"""What a running remote works with: its sessions, the repository, its logs."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING

import anyio

from cluster_remote.access.configuration import is_accepted
from cluster_remote.access.identity import believed, names_of, wanted_server
from cluster_remote.access.place import caller_of, way_of
from cluster_remote.access.settings import Settings
from cluster_remote.access.ways import Serverless, Way
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.locationlog import LocationLog
from cluster_remote.annex.repository import Repository
from cluster_remote.annex.verification import verified
from cluster_remote.cluster.opening import resolved
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.p2p.checksum import Checksum
from cluster_remote.p2p.errors import Damaged, SessionError
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Progress, Session
from cluster_remote.p2p.stream import Trace
from cluster_remote.remote.behind import NodesBehind
from cluster_remote.remote.causes import Causes
from cluster_remote.remote.chunks import stored_as
from cluster_remote.remote.pool import SessionPool
from cluster_remote.remote.retrieval import (
    NotRetrieved,
    can_be_looked_at,
    retrieve,
    retrieve_apart,
    retrieve_whole,
)

if TYPE_CHECKING:
    from cluster_remote.annex.filenames import FileNames

__all__ = ["Context"]


class GivenUp(SessionError):
    """Nobody is left who wants to know the answer."""


# Large contents that were given last, for which it is noticed that git-annex asks again.
_GIVEN = 100
# Seconds for which a look at the location log is good.
_A_MOMENT = 0.1


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
        self.behind = NodesBehind(self._session_with_node)
        self.causes = Causes()
        self._given: deque[Key] = deque(maxlen=_GIVEN)
        self._read_again = False
        self._location_log: _Log | None = None
        self._file_names: FileNames | None = None
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
        self.config = await resolved(self.repository.config(), self.repository)
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
        # Uploads are recorded by the remote, at the last moment.
        return self.way.cluster_session(
            trace, locations=log, record=log, record_uploads=False, reachability=self._reachability
        )

    async def _session_with_node(self, node: UUID, trace: Trace) -> Session:
        return self.way.node(node, trace)

    def _locations(self) -> _Log:
        if self._location_log is None:
            self._location_log = _Log(self.repository, self.settings.uuid, under_git_annex=True)
        return self._location_log

    @property
    def counts_nodes(self) -> bool:
        """Whether the remote is a cluster whose nodes are the copies."""
        return self.settings.tracking == "nodes" and self.settings.uuid.is_cluster

    @property
    def is_serverless(self) -> bool:
        """Whether the cluster is one of this very repository."""
        return isinstance(self.way, Serverless)

    @property
    def is_cluster(self) -> bool:
        """Whether it is a cluster that is asked, and not a single repository."""
        return self.is_serverless or (self.server is not None and self.server.is_cluster)

    def expect_to_record(self) -> None:
        """Something will be recorded soon: what that takes is started meanwhile."""
        if self.settings.tracking == "nodes":
            self._locations().expect()

    async def record(self, key: Key, present: Collection[UUID] = (), absent: Collection[UUID] = ()) -> None:
        """Records where the content is now, as far as that is this remote's to say. Raises LocationLogError."""
        if self.settings.tracking == "nodes":
            await self._locations().record(key, present, absent)

    async def believed(self, named: frozenset[UUID]) -> tuple[frozenset[UUID], frozenset[UUID]]:
        """Split the repositories that an answer names into those that can be recorded, and the others."""
        if self.settings.tracking == "remote":
            return frozenset(uuid for uuid in named if not uuid.is_cluster), frozenset()
        ours, others = believed(named, self.settings.uuid, self.logs, self.repository.uuid)
        if others and not self._read_again:
            # A node may have been added since.
            self._read_again = True
            self.logs = await BranchLogs.read(self.repository)
            ours, others = believed(named, self.settings.uuid, self.logs, self.repository.uuid)
        return ours, others

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

    def names_of(self, uuids: Iterable[UUID]) -> str:
        """Their names, in a list for people."""
        return ", ".join(sorted(map(self.name_of, uuids)))

    @property
    def nodes(self) -> frozenset[UUID]:
        """The nodes of the cluster, by cluster.log; none where the cluster is not known here."""
        cluster = self.settings.uuid if self.counts_nodes else self.server
        return frozenset() if cluster is None else self.logs.clusters.nodes(cluster)

    @property
    def living_nodes(self) -> frozenset[UUID]:
        """Those of the nodes that are not dead."""
        return frozenset(node for node in self.nodes if self.logs.trust.get(node) != "dead")

    async def nodes_with(self, key: Key) -> frozenset[UUID]:
        """The nodes that have the content, by the location log."""
        return await self._locations().locations(key) & self.nodes

    async def file_of(self, key: Key) -> AssociatedFile:
        """Return the file in this work tree that has the key, if a rule of a node may ask for it; otherwise none.

        Nothing is told of an encrypted content, nor of a chunk. Raises CommandFailed.
        """
        # Where the cluster is not known, only its gateway knows whether its nodes have rules.
        nodes = self.living_nodes
        matters = self.is_cluster and (not nodes or self.logs.has_preferred_content(nodes))
        if not matters or key.is_chunk or key.is_encrypted:
            return AssociatedFile()
        if self._file_names is None:
            from cluster_remote.annex.filenames import FileNames

            self._file_names = FileNames(self.repository)
        return await self._file_names.of(key)

    async def fetch(
        self, session: Session, key: Key, path: bytes, progress: Progress, tell: Callable[[str], None]
    ) -> None:
        """Retrieve a content; if what comes is damaged, from one node after the other until one gives a good copy.

        `tell` is told of a damaged copy. Raises NotRetrieved, CannotWrite, SessionError.
        """
        stored = stored_as(key)
        if not stored.is_verifiable:
            await retrieve_apart(session, stored, path, progress)
            return
        remedy = f"to find and replace it: cluster-remote check {self.settings.name} --content --fix, then repair"
        if not can_be_looked_at(stored) and not (key in self._given and Checksum.of(stored) is not None):
            # git-annex has hashed what it saw of the file, so a damaged content cannot be replaced now. It asks again,
            # and who asks again for what it got does not like it: then each node is asked by itself.
            try:
                await retrieve(session, stored, path, progress, spread=True)
            except Damaged as damaged:
                self._given.append(key)
                raise Damaged(f"{damaged}; {remedy}") from None
            self._given.append(key)
            return
        try:
            await retrieve_whole(session, stored, path, progress)
            return
        except Damaged as damaged:
            failures: list[SessionError] = [damaged]
            where = session.name if damaged.origin is None else self.name_of(damaged.origin)
            tell(f"{where} gave a damaged copy; {remedy}")
            first = damaged.origin
        known = await self.nodes_with(key) if self.counts_nodes else frozenset()
        for node in sorted(known - {first}, key=lambda node: (self.name_of(node), node)):
            try:
                async with self.behind.session(node) as single:
                    await retrieve_whole(single, stored, path, progress)
                    return
            except SessionError as error:
                failures.append(error)
        raise NotRetrieved("; ".join(map(str, failures)))

    async def fetch_from_one(self, session: Session, key: Key, path: bytes, progress: Progress) -> UUID | None:
        """Retrieves a content to be checked, from one repository if possible, and gives that; None if it is not known.

        Behind a gateway each node that has it by the log is asked by itself, in the order of their names.
        """
        known = await self.nodes_with(key) if self.counts_nodes and not self.is_serverless else frozenset()
        for node in sorted(known, key=lambda node: (self.name_of(node), node)):
            with suppress(SessionError):
                async with self.behind.session(node) as single:
                    await retrieve(single, stored_as(key), path, progress)
                    return node
            # What one has begun, no other is to go on with.
            with suppress(FileNotFoundError):
                os.truncate(path, 0)
        return await retrieve(session, stored_as(key), path, progress)

    async def aclose(self) -> None:
        """Closes everything. Bounded in time."""
        await self._sessions.aclose()
        await self.behind.aclose()
        if self._location_log is not None:
            await self._location_log.aclose()
