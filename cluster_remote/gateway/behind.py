"""What a gateway stands before: a cluster, each of the repositories that it is a proxy of, and its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.repository import GitConfig, Repository
from cluster_remote.gateway.connect import GitService
from cluster_remote.gateway.errors import NotServed
from cluster_remote.p2p.client import DEFAULT_TIMEOUT
from cluster_remote.p2p.errors import Unreachable
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.server import Mode, Served
from cluster_remote.p2p.session import Session
from cluster_remote.transport.address import Directory
from cluster_remote.transport.opening import Caller, session_at

__all__ = ["Behind"]


def _chosen(config: GitConfig, wanted: str | None) -> UUID:
    """The cluster to be served: that of this name or UUID, or the only one there is. Raises NotServed."""
    clusters = config.clusters()
    if wanted is None:
        if len(clusters) == 1:
            return next(iter(clusters.values()))
        if not clusters:
            raise NotServed(
                "this repository is not the gateway of a cluster: make one with git annex initcluster NAME, give it "
                "nodes (git config remote.NODE.annex-cluster-node NAME) and run git annex updatecluster"
            )
        raise NotServed(f"there are several clusters here: say which with --cluster ({', '.join(sorted(clusters))})")
    for name, uuid in clusters.items():
        if wanted in (name, uuid.text):
            return uuid
    known = f"; there is {', '.join(sorted(clusters))}" if clusters else ""
    raise NotServed(f"this repository is not the gateway of a cluster {wanted!r}{known}")


@dataclass(frozen=True)
class Behind:
    """A gateway's repository (`own` is its UUID) and the cluster that clients get who do not say otherwise."""

    repository: Repository
    own: UUID
    cluster: UUID
    timeout: float = DEFAULT_TIMEOUT

    @classmethod
    def at(cls, repository: Repository, cluster: str | None, timeout: float = DEFAULT_TIMEOUT) -> Behind:
        """With the cluster of this name or UUID; None: the only one there is. Raises NotServed, AnnexError."""
        own = repository.uuid
        return cls(repository, own, _chosen(repository.config(), cluster), timeout)

    async def served(
        self,
        wanted: UUID | None,
        client: UUID | None,
        mode: Mode,
        *,
        with_git: bool = False,
        note: Callable[[str], None] | None = None,
    ) -> Served:
        """What a client gets that wants this repository or cluster (None: the cluster). It may have no UUID itself.

        `with_git` lets it have the gateway's own git repository too, by CONNECT. Raises NotServed, AnnexError.
        """
        uuid = self.cluster if wanted is None else wanted
        if uuid != self.cluster and uuid not in await self._others():
            raise NotServed(f"this gateway does not stand before {uuid}")
        connect = GitService(self.repository, note) if with_git else None
        return Served(uuid, partial(self._session, uuid, client or self.own), mode, connect)

    async def _others(self) -> set[UUID]:
        """Every repository and cluster that can be had here, as it is now."""
        clusters = set(self.repository.config().clusters().values())
        proxied = (await BranchLogs.read(self.repository, ["proxy.log"])).proxied
        return {self.own, *clusters, *proxied.get(self.own, {}).values()}

    async def _session(self, uuid: UUID, client: UUID, bypass: frozenset[UUID]) -> Session:
        try:
            return self._proxied(uuid, client, bypass)
        except AnnexError as error:
            raise Unreachable(str(error)) from None

    def _proxied(self, uuid: UUID, client: UUID, bypass: frozenset[UUID]) -> Session:
        """By git-annex's own proxy, which records in this repository what comes and goes."""
        place = Directory(str(self.repository.work_tree or self.repository.git_dir))
        return session_at(place, Caller(client, self.timeout), server=uuid, bypass=bypass)
