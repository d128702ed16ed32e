"""Reach a cluster through a gateway, or directly if its nodes are remotes of this repository."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.locationlog import LocationLog
from cluster_remote.cluster.membership import Direct
from cluster_remote.cluster.node import NETWORK_COST, Node
from cluster_remote.p2p.key import UUID
from cluster_remote.transport.address import Address, Directory, at_node
from cluster_remote.transport.opening import Caller, session_at

if TYPE_CHECKING:
    from cluster_remote.annex.branchlog import BranchLogs
    from cluster_remote.annex.gitconfig import GitConfig
    from cluster_remote.cluster.membership import Membership
    from cluster_remote.cluster.reachability import Reachability
    from cluster_remote.cluster.session import ClusterSession, Locations, Recorder
    from cluster_remote.p2p.session import Session
    from cluster_remote.p2p.stream import Trace

__all__ = ["Serverless", "ThroughGateway", "Way", "costs_of"]


class Way(ABC):
    """A way to reach a cluster or a single repository. Nothing connects before a session is used."""

    caller: Caller

    @abstractmethod
    def session(self, server: UUID | None = None, trace: Trace | None = None) -> Session:
        """Return a session with `server` (None: the one at the address). Raises BadSettings, BadAddress."""

    @abstractmethod
    def node(self, uuid: UUID, trace: Trace | None = None) -> Session:
        """Return a session with a single node. Raises BadSettings, BadAddress."""

    @abstractmethod
    def nodes(self, cluster: UUID) -> tuple[Node, ...]:
        """Return the individual nodes of a cluster."""


@dataclass(frozen=True)
class ThroughGateway(Way):
    """Reach a cluster through the server at an address.

    `by_address` means that the address itself selects the repository behind it, if that is not the cluster.
    """

    address: Address
    caller: Caller
    token: str | None = field(repr=False)
    config: GitConfig = field(repr=False)
    logs: BranchLogs = field(repr=False)
    by_address: bool = False

    @property
    def directory(self) -> Path | None:
        """Return its directory if it is on this machine."""
        return Path(self.address.path) if isinstance(self.address, Directory) else None

    def within(self, timeout: float) -> ThroughGateway:
        """Return the same way with another timeout, in seconds without progress."""
        return replace(self, caller=replace(self.caller, timeout=timeout))

    def session(self, server: UUID | None = None, trace: Trace | None = None) -> Session:
        if server is None or server.is_cluster or self.by_address:
            return self._at(self.address, server, trace)
        return self.node(server, trace)

    def node(self, uuid: UUID, trace: Trace | None = None) -> Session:
        return self._at(at_node(self.address, uuid), uuid, trace)

    def _at(self, address: Address, server: UUID | None, trace: Trace | None) -> Session:
        return session_at(address, replace(self.caller, trace=trace), server=server, token=self.token)

    def nodes(self, cluster: UUID) -> tuple[Node, ...]:
        names = {uuid: name for names in self.logs.proxied.values() for name, uuid in names.items()}
        costs = costs_of(self.config)

        def session(uuid: UUID) -> Callable[[], Session]:
            return lambda: self.node(uuid)

        nodes = [
            Node(
                uuid,
                names.get(uuid, uuid.text),
                self.logs.descriptions.get(uuid, ""),
                costs.get(uuid, NETWORK_COST),
                session(uuid),
                "proxied",
            )
            for uuid in self.logs.clusters.nodes(cluster)
        ]
        return tuple(sorted(nodes, key=lambda node: node.name))


@dataclass(frozen=True)
class Serverless(Way):
    """Reach the cluster of this repository without a server."""

    membership: Membership
    caller: Caller
    logs: BranchLogs = field(repr=False)

    def session(self, server: UUID | None = None, trace: Trace | None = None) -> Session:
        assert self.caller.repository is not None
        log = LocationLog(self.caller.repository)
        whole = self.cluster_session(trace, locations=log)
        whole.owns(log)
        return whole

    def cluster_session(
        self,
        trace: Trace | None = None,
        *,
        locations: Locations | None,
        record: Recorder | None = None,
        record_uploads: bool = True,
        reachability: Reachability | None = None,
    ) -> ClusterSession:
        """Return a session that reads and updates the given logs. Raises NoCluster."""
        return self.membership.session(
            replace(self.caller, trace=trace),
            locations=locations,
            record=record,
            record_uploads=record_uploads,
            reachability=reachability,
        )

    def node(self, uuid: UUID, trace: Trace | None = None) -> Session:
        nodes = self.membership.nodes(replace(self.caller, trace=trace))
        for each in nodes:
            if each.uuid == uuid:
                return each.session()
        raise BadSettings(
            f"{self.logs.descriptions.get(uuid, uuid.text)} is not a node of the cluster {self.membership.name} of "
            f"this repository; its nodes are {', '.join(each.name for each in nodes)}"
        )

    def nodes(self, cluster: UUID) -> tuple[Node, ...]:
        return tuple(self._individual_nodes())

    def _individual_nodes(self) -> Iterator[Node]:
        """Yield the nodes, including each node behind another gateway."""
        members = {member.name: member for member in self.membership.members}
        for node in self.membership.nodes(self.caller):
            way = members[node.name].way
            if node.kind != "gateway":
                yield node
            elif isinstance(way, Direct):
                caller = replace(self.caller, ssh_options=way.ssh_options)
                for uuid in sorted(node.members):
                    session = partial(session_at, at_node(way.address, uuid), caller, server=uuid, token=way.token)
                    description = self.logs.descriptions.get(uuid, "")
                    yield Node(uuid, f"{node.name}: {uuid}", description, node.cost, session, "gateway")


def costs_of(config: GitConfig) -> Mapping[UUID, float]:
    """Return the lowest cost per UUID of this repository's remotes, if configured or already computed."""
    found: dict[UUID, float] = {}
    for remote in config.remotes():
        uuid, cost = config.remote(remote, "annex-uuid"), config.remote(remote, "annex-cost")
        try:
            each, number = UUID(uuid or ""), float(cost or "")
        except ValueError:
            continue
        found[each] = min(number, found.get(each, number))
    return found
