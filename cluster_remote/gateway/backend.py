"""What a gateway stands before: a cluster, each of the repositories that it is a proxy of, and its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from cluster_remote.access.place import caller_of
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.repository import Repository
from cluster_remote.cluster.membership import Membership, chosen_cluster, membership
from cluster_remote.cluster.opening import open_cluster
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.cluster.wrapping import AskedDirectly
from cluster_remote.gateway.connect import GitService
from cluster_remote.gateway.errors import NotServed
from cluster_remote.gateway.recording import SharedLog
from cluster_remote.p2p.client import DEFAULT_TIMEOUT
from cluster_remote.p2p.errors import Unreachable
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.server import Endpoint, Mode
from cluster_remote.p2p.session import Session
from cluster_remote.transport.address import BadAddress, Directory
from cluster_remote.transport.opening import Caller, session_at

__all__ = ["Backend"]

# Of the time that clients grant, what a node gets: if it got all of it, they would give up together with the node.
_FOR_A_NODE = 0.5


class Backend:
    """One gateway's repositories, for all its clients. To be closed in the end.

    `own` is the UUID of the gateway's own repository, `cluster` what clients get who do not say otherwise; `timeout`
    is what clients grant, in seconds without progress.
    """

    def __init__(self, repository: Repository, own: UUID, cluster: UUID, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.repository = repository
        self.own = own
        self.cluster = cluster
        self.timeout = timeout
        self.log = SharedLog(repository)
        self._reachability = Reachability()

    @classmethod
    def at(cls, repository: Repository, cluster: str | None, timeout: float = DEFAULT_TIMEOUT) -> Backend:
        """With the cluster of this name or UUID; None: the only one there is. Raises NoCluster, AnnexError."""
        own = repository.uuid
        uuid, _name = chosen_cluster(repository.config(), cluster)
        return cls(repository, own, uuid, timeout)

    async def served(
        self,
        wanted: UUID | None,
        client: UUID | None,
        mode: Mode,
        *,
        with_git: bool | None = None,
        note: Callable[[str], None] | None = None,
    ) -> Endpoint:
        """What a client gets that wants this repository or cluster (None: the cluster). It may have no UUID itself.

        `with_git` lets it have the gateway's own git repository too, by CONNECT; False tells it that its token does
        not; None is for who has no token. Raises NotServed, AnnexError.
        """
        uuid = self.cluster if wanted is None else wanted
        clusters = set((await self.repository.current_config()).clusters().values())
        session: Callable[[frozenset[UUID]], Awaitable[Session]]
        if uuid in clusters:
            session = partial(self._cluster_session, uuid)
        elif uuid == self.own or uuid in await self._proxied():
            session = partial(self._proxied_session, uuid, client or self.own)
        else:
            raise NotServed(f"this gateway does not stand before {uuid}")
        denied = None if with_git else "this token gives no access to the git repository"
        connect = None if with_git is None else GitService(self.repository, self.log.commit, note, denied)
        return Endpoint(uuid, session, mode, connect)

    async def nodes(self) -> list[tuple[str, UUID, str]]:
        """The nodes of the cluster: what each is called, its UUID, and whether it is left out at the moment."""
        return [
            (
                member.description or member.name,
                member.uuid,
                "could not be reached" if self._reachability.resting(member.name) else "in use",
            )
            for member in (await self._membership()).members
        ]

    async def _membership(self) -> Membership:
        config, logs = await self.repository.current_config(), await BranchLogs.read(self.repository)
        return membership(config, logs, self.repository.place, self.cluster.text)

    async def size(self) -> int:
        """How many nodes a session with a cluster may have connections to."""
        config = await self.repository.current_config()
        return sum(1 for remote in config.remotes() if config.remote(remote, "annex-cluster-node"))

    async def _proxied(self) -> frozenset[UUID]:
        proxied = (await BranchLogs.read(self.repository, ["proxy.log"])).proxied
        return frozenset(proxied.get(self.own, {}).values())

    async def _caller(self, uuid: UUID) -> Caller:
        config = await self.repository.current_config()
        return replace(caller_of(self.repository, config, self.timeout * _FOR_A_NODE), uuid=uuid)

    async def _cluster_session(self, uuid: UUID, bypass: frozenset[UUID]) -> Session:
        """As the cluster is now: nodes come and go while the gateway runs."""
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
        """By git-annex's own proxy, which records in this repository what comes and goes."""
        place = Directory(str(self.repository.place))
        # The proxy asks the node in its turn, so it gets all the time.
        caller = replace(await self._caller(client), timeout=self.timeout)
        proxied = session_at(place, caller, server=uuid, bypass=bypass)
        try:
            nodes = (await self._membership()).nodes(await self._caller(self.own))
        except AnnexError:
            # It is no gateway of a cluster any more, but still a proxy.
            return proxied
        direct = (node.session for node in nodes if node.uuid == uuid and node.kind in ("local", "ssh"))
        session = next(direct, None)
        return proxied if session is None else AskedDirectly(proxied, session)

    async def aclose(self) -> None:
        """Commits what has been recorded. Takes at most about a minute."""
        await self.log.aclose()
