"""Read cluster.log, which lists the nodes of each cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster_remote.annex import logformat
from cluster_remote.p2p.key import UUID

__all__ = ["MOST_NODES", "ClusterLog"]

MOST_NODES = 1000
"""Others can write to cluster.log, and some commands contact every node: a line with more nodes is skipped."""


@dataclass(frozen=True)
class ClusterLog:
    """The clusters known to this repository. There may be others, whose gateways it has never fetched from."""

    members: Mapping[UUID, frozenset[UUID]]

    @classmethod
    def parse(cls, raw: bytes) -> ClusterLog:
        """Parse lines `TIMESTAMPs CLUSTERUUID NODEUUID…`; the newest one per cluster counts.

        A line without nodes still has the space after the cluster.
        """
        entries: list[tuple[logformat.Clock, UUID, frozenset[UUID]]] = []
        for clock, rest in logformat.dated(raw):
            name, separator, nodes = rest.partition(" ")
            cluster = UUID.if_valid(name)
            if cluster is not None and cluster.is_cluster and separator and nodes.count(" ") < MOST_NODES:
                entries.append((clock, cluster, frozenset(filter(None, map(UUID.if_valid, nodes.split(" "))))))
        return cls(logformat.newest(entries))

    def clusters(self) -> frozenset[UUID]:
        """Return every known cluster."""
        return frozenset(self.members)

    def nodes(self, cluster: UUID) -> frozenset[UUID]:
        """Return the nodes of a cluster; empty if it is unknown."""
        return self.members.get(cluster, frozenset())
