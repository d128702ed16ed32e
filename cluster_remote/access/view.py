"""A cluster, or a single repository, as it is seen from here, and the sessions to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from cluster_remote.access.identity import node_named
from cluster_remote.access.ways import ThroughGateway, Way
from cluster_remote.cluster.node import Node
from cluster_remote.p2p.key import UUID

if TYPE_CHECKING:
    from cluster_remote.access.settings import Settings
    from cluster_remote.annex.branchlog import BranchLogs, Trust
    from cluster_remote.annex.gitconfig import GitConfig
    from cluster_remote.annex.repository import Repository
    from cluster_remote.p2p.session import Session
    from cluster_remote.p2p.stream import Trace

__all__ = ["View"]

# git-annex's own cost of a repository on the network.
_COST = 200.0


@dataclass(frozen=True)
class View:
    """What a name or an address means here; it does not know who asks.

    `label` is what was given; `repository` is None outside of one of git-annex; `settings` is None for a bare address.
    `uuid` is the cluster's or repository's own, None where only the server knows it; `server` is whom to ask for.
    """

    label: str
    repository: Repository | None
    config: GitConfig = field(repr=False)
    logs: BranchLogs = field(repr=False)
    settings: Settings | None
    known_uuid: UUID | None
    server: UUID | None
    way: Way

    @property
    def uuid(self) -> UUID:
        assert self.known_uuid is not None, "who is at the address has not been asked"
        return self.known_uuid

    def session(self, trace: Trace | None = None) -> Session:
        """A new session with the whole; nothing is opened yet. Raises BadSettings, BadAddress, NoCluster."""
        return self.way.session(self.server, trace)

    def node(self, name: str, trace: Trace | None = None) -> Session:
        """A new session with one node, by UUID, description or name. Raises BadSettings, BadAddress."""
        return self.way.node(node_named(name, self.config, self.logs, self.server), trace)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes, each by itself. What counts as one copy is a single one, whatever there is behind it."""
        if self.settings is None:
            nodes = self.way.nodes(self.uuid)
            if self.uuid.is_cluster:
                return nodes
            name = self.logs.descriptions.get(self.uuid) or self.label
            return (Node(self.uuid, name, "", _COST, self.session, "proxied"),)
        if self.settings.tracking == "nodes" and self.settings.uuid.is_cluster:
            return self.way.nodes(self.settings.uuid)
        description = self.logs.descriptions.get(self.uuid, "")
        return (Node(self.uuid, self.settings.name, description, self.settings.cost, self.session, "proxied"),)

    @property
    def gateway(self) -> ThroughGateway | None:
        """What stands before the nodes; None where they are remotes of this repository."""
        return self.way if isinstance(self.way, ThroughGateway) else None

    @property
    def timeout(self) -> float:
        """Seconds without progress."""
        return self.way.caller.timeout

    @property
    def uuids(self) -> frozenset[UUID]:
        """The nodes' UUIDs."""
        return frozenset(node.uuid for node in self.nodes)

    def trust(self, uuid: UUID) -> Trust:
        """How far the repository is trusted to keep what it has."""
        return self.logs.trust.get(uuid, "semitrusted")

    @property
    def living(self) -> tuple[Node, ...]:
        """The nodes that nobody has declared dead."""
        return tuple(node for node in self.nodes if self.trust(node.uuid) != "dead")

    @property
    def legible(self) -> bool:
        """Whether the nodes hold contents under the keys that this repository knows them by."""
        return self.settings is None or (self.settings.encryption == "none" and not self.settings.chunked)

    def wants_all(self, node: Node) -> bool:
        """Whether a node takes whatever it is offered: it has no preferred or required content set."""
        return not self.logs.has_preferred_content([node.uuid])
