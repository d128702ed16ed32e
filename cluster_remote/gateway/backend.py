"""What a gateway serves: a cluster, the repositories that it is a proxy for, and its own repository."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import anyio

from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.repository import Repository
from cluster_remote.cluster.membership import Membership, chosen_cluster
from cluster_remote.cluster.node import Node
from cluster_remote.cluster.opening import CLUSTER_LOGS, cluster_of, open_cluster
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.cluster.wrapping import DirectChecks
from cluster_remote.gateway.connect import GitService
from cluster_remote.gateway.errors import NotServed
from cluster_remote.gateway.recording import SharedLog
from cluster_remote.p2p.errors import SessionError, Unreachable
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.server import Endpoint, Mode
from cluster_remote.p2p.session import Session
from cluster_remote.p2p.timeouts import DEFAULT_TIMEOUT
from cluster_remote.p2p.uploads import Uploads
from cluster_remote.transport.address import BadAddress, Directory
from cluster_remote.transport.opening import Caller, session_at

__all__ = ["Backend"]

# A node's share of the clients' timeout. With all of it, clients would time out together with the node.
_NODE_SHARE = 0.5
# What a session depends on. git-annex, which uploads where nodes have preferred content, reads it only when it starts.
_LOGS_OF_SESSIONS = (
    *CLUSTER_LOGS,
    "group.log",
    "group-preferred-content.log",
    "numcopies.log",
    "mincopies.log",
)
# Records after which each repository commits its log. Git-annex lets nobody record there during a commit, which takes
# up to a millisecond for each record: clients must hardly notice.
_MOST_UNCOMMITTED = 800


class Backend:
    """One gateway's repositories, for all its clients. Close it at the end.

    `own` is the UUID of the gateway's own repository, `cluster` the one that clients get by default; `timeout` is how
    long clients wait, in seconds without progress.
    """

    def __init__(self, repository: Repository, own: UUID, cluster: UUID, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.repository = repository
        self.own = own
        self.cluster = cluster
        self.timeout = timeout
        self.log = SharedLog(repository)
        self._reachability = Reachability()
        self._uploads = Uploads()
        self._logs, self._logs_read = BranchLogs({}), -math.inf
        self._reading_logs = anyio.Lock()

    @classmethod
    def at(cls, repository: Repository, cluster: str | None, timeout: float = DEFAULT_TIMEOUT) -> Backend:
        """Serve the cluster with this name or UUID; None: the only one. Raises NoCluster, AnnexError."""
        own = repository.uuid
        uuid, _name = chosen_cluster(repository.config(), cluster)
        return cls(repository, own, uuid, timeout)

    async def endpoint(
        self,
        wanted: UUID | None,
        client: UUID | None,
        mode: Mode,
        *,
        with_git: bool | None = None,
        note: Callable[[str], None] | None = None,
    ) -> Endpoint:
        """Return what a client gets that requests this repository or cluster (None: the default cluster).

        `client` is the client's UUID, if it has one. `with_git` also gives it the gateway's own git repository, through
        CONNECT; False means that its token does not allow that, None that it has no token.
        Raises NotServed, AnnexError.
        """
        uuid = self.cluster if wanted is None else wanted
        clusters = set((await self.repository.current_config()).clusters().values())
        session: Callable[[frozenset[UUID]], Awaitable[Session]]
        if uuid in clusters:
            session = partial(self._cluster_session, uuid)
        elif uuid == self.own or uuid in await self._proxied():
            session = partial(self._proxied_session, uuid, client or self.own)
        else:
            raise NotServed(f"{uuid} is not behind this gateway")
        denied = None if with_git else "this token gives no access to the git repository"
        connect = None if with_git is None else GitService(self.repository, self.log.commit, note, denied)
        # git-annex shows whom this repository sends to, and whose transfers failed.
        return Endpoint(uuid, session, mode, connect, self._uploads, client if uuid == self.own else None)

    async def nodes(self) -> list[tuple[str, UUID, str]]:
        """Return the cluster's nodes: name, UUID, and whether each is in use or currently skipped."""
        return [
            (
                member.description or member.name,
                member.uuid,
                "could not be reached" if self._reachability.resting(member.name) else "in use",
            )
            for member in (await self._membership()).members
        ]

    async def commit_under_load(self, note: Callable[[str], None]) -> None:
        """Have the nodes commit their own logs after many changes, until cancelled. `note` gets error messages.

        A git-annex-shell commits what all of them have recorded when it ends, and no other can record meanwhile. Under
        constant load none ends, and the first that does would keep all clients waiting for long. The nodes and this
        gateway commit one after the other, with records in between, so that nobody waits for several of them.
        """
        while True:
            await self.log.wait_for(1)
            try:
                nodes = (await self._membership()).nodes(await self._caller(self.own))
            except AnnexError as error:
                note(f"cannot have the nodes commit their logs: {error}")
                nodes = ()
            committing = [node for node in nodes if node.kind in ("local", "ssh")]
            between = max(_MOST_UNCOMMITTED // (len(committing) + 1), 1)
            for node in committing:
                await self.log.wait_for(between)
                if not self._reachability.resting(node.name):
                    await self._commit_on(node, note)
            await self.log.wait_for(between)
            try:
                await self.log.commit()
            except AnnexError as error:
                note(f"cannot commit the location log: {error}")

    async def _commit_on(self, node: Node, note: Callable[[str], None]) -> None:
        try:
            session = node.session()
            try:
                await session.open()
            finally:
                await session.aclose()
        except (SessionError, ValueError) as error:
            note(f"cannot have {node} commit its log: {error}")

    async def nodes_version(self, max_age: float) -> object:
        """Return a value that changes with the clusters' nodes and what they want. Raises Unreachable.

        Changes of the git-annex branch in the last `max_age` seconds may be missing: reading it takes a process.
        """
        oldest = time.monotonic() - max_age
        try:
            config = await self.repository.current_config()
            if self._logs_read < oldest:
                async with self._reading_logs:
                    # Others who waited for the same reading need no more.
                    if self._logs_read < oldest:
                        began = time.monotonic()
                        logs = await BranchLogs.read(self.repository, _LOGS_OF_SESSIONS)
                        # Comparing an object with itself takes no time.
                        self._logs, self._logs_read = self._logs if logs == self._logs else logs, began
        except AnnexError as error:
            raise Unreachable(str(error)) from None
        return config, self._logs

    async def _membership(self) -> Membership:
        config, logs = await self.repository.current_config(), await BranchLogs.read(self.repository)
        return cluster_of(self.repository, config, logs, self.cluster.text)

    async def node_count(self) -> int:
        """Return how many nodes a session with a cluster may connect to."""
        config = await self.repository.current_config()
        return sum(1 for remote in config.remotes() if config.remote(remote, "annex-cluster-node"))

    async def _proxied(self) -> frozenset[UUID]:
        proxied = (await BranchLogs.read(self.repository, ["proxy.log"])).proxied
        return frozenset(proxied.get(self.own, {}).values())

    async def _caller(self, uuid: UUID) -> Caller:
        config = await self.repository.current_config()
        return replace(Caller.of(self.repository, config, self.timeout * _NODE_SHARE), uuid=uuid)

    async def _cluster_session(self, uuid: UUID, bypass: frozenset[UUID]) -> Session:
        """Open a session with the current nodes of a cluster, which may change while the gateway runs."""
        try:
            return await open_cluster(
                self.repository,
                uuid.text,
                await self._caller(self.own),
                locations=self.log,
                record=self.log,
                bypass=bypass,
                reachability=self._reachability,
            )
        except (AnnexError, BadAddress) as error:
            raise Unreachable(str(error)) from None

    async def _proxied_session(self, uuid: UUID, client: UUID, bypass: frozenset[UUID]) -> Session:
        """Open a session through git-annex's own proxy, which records changes in this repository."""
        own_address = Directory(str(self.repository.directory))
        # The proxy asks the node itself, so it gets the whole timeout.
        caller = replace(await self._caller(client), timeout=self.timeout)
        proxied = session_at(own_address, caller, server=uuid, bypass=bypass)
        try:
            nodes = (await self._membership()).nodes(await self._caller(self.own))
        except AnnexError:
            # This repository is no longer a gateway of a cluster, but still a proxy.
            return proxied
        direct = (node.session for node in nodes if node.uuid == uuid and node.kind in ("local", "ssh"))
        session = next(direct, None)
        return proxied if session is None else DirectChecks(proxied, session)

    async def aclose(self) -> None:
        """Commit what was recorded. Takes at most about a minute."""
        await self.log.aclose()
