"""View a cluster or a single repository from here, and open sessions to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from cluster_remote.access.identity import node_named
from cluster_remote.access.ways import ThroughGateway, Way
from cluster_remote.cluster.node import NETWORK_COST, Node
from cluster_remote.p2p.key import UUID

if TYPE_CHECKING:
    from cluster_remote.access.settings import Settings
    from cluster_remote.annex.branchlog import BranchLogs, Trust
    from cluster_remote.annex.gitconfig import GitConfig
    from cluster_remote.annex.repository import Repository
    from cluster_remote.p2p.session import Session
    from cluster_remote.p2p.stream import Trace

__all__ = ["View"]


@dataclass(frozen=True)
class View:
    """The cluster or repository that a name or an address refers to here.

    `label` is the name as given; `repository` is None outside of a git-annex repository; `settings` is None for a bare
    address. `uuid` is the cluster's or repository's, None if only the server knows it; `server` is the one to request.
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
        assert self.known_uuid is not None, "the server at the address has not been asked for its UUID"
        return self.known_uuid

    def session(self, trace: Trace | None = None) -> Session:
        """Return an unconnected session with the whole cluster. Raises BadSettings, BadAddress, NoCluster."""
        return self.way.session(self.server, trace)

    def node(self, name: str, trace: Trace | None = None) -> Session:
        """Return a session with one node, by UUID, description or name. Raises BadSettings, BadAddress."""
        return self.way.node(node_named(name, self.config, self.logs, self.server), trace)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Return the individual nodes. A repository that counts as one copy is one node, whatever is behind it."""
        if self.settings is None:
            nodes = self.way.nodes(self.uuid)
            if self.uuid.is_cluster:
                return nodes
            name = self.logs.descriptions.get(self.uuid) or self.label
            return (Node(self.uuid, name, "", NETWORK_COST, self.session, "proxied"),)
        if self.settings.tracking == "nodes" and self.settings.uuid.is_cluster:
            return self.way.nodes(self.settings.uuid)
        description = self.logs.descriptions.get(self.uuid, "")
        return (Node(self.uuid, self.settings.name, description, self.settings.cost, self.session, "proxied"),)

    @property
    def gateway(self) -> ThroughGateway | None:
        """Return the gateway in front of the nodes; None if they are remotes of this repository."""
        return self.way if isinstance(self.way, ThroughGateway) else None

    @property
    def timeout(self) -> float:
        """Return the timeout, in seconds without progress."""
        return self.way.caller.timeout

    @property
    def uuids(self) -> frozenset[UUID]:
        """Return the nodes' UUIDs."""
        return frozenset(node.uuid for node in self.nodes)

    def trust(self, uuid: UUID) -> Trust:
        """Return the repository's trust level."""
        return self.logs.trust.get(uuid, "semitrusted")

    @property
    def living(self) -> tuple[Node, ...]:
        """Return the nodes that are not marked dead."""
        return tuple(node for node in self.nodes if self.trust(node.uuid) != "dead")

    @property
    def legible(self) -> bool:
        """Return whether the nodes store contents under the keys that this repository uses."""
        return self.settings is None or (self.settings.encryption == "none" and not self.settings.chunked)

    def wants_all(self, node: Node) -> bool:
        """Return whether a node accepts any content: it has no preferred or required content set."""
        return not self.logs.has_preferred_content([node.uuid])
