"""Find nodes in cluster.log without a remote, and remotes that lead to a different repository than before. Pure.

When a replacement disk is mounted at the same path, git-annex silently changes the UUID of the remote. For this
repository the node has then left the cluster, and its replacement is not a node.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cluster_remote.diagnosis.problems import node_replaced, node_without_remote
from cluster_remote.p2p.key import UUID

if TYPE_CHECKING:
    from cluster_remote.access.view import View
    from cluster_remote.annex.branchlog import BranchLogs
    from cluster_remote.annex.gitconfig import GitConfig
    from cluster_remote.diagnosis.problem import Problem

__all__ = ["missing_nodes", "problems_of_missing", "replaced_nodes"]


def _unlisted_remotes(config: GitConfig, logs: BranchLogs, cluster: UUID) -> dict[str, UUID]:
    """Return the remotes configured as nodes of a cluster whose repositories cluster.log does not list."""
    listed = logs.clusters.nodes(cluster)
    found: dict[str, UUID] = {}
    for remote in config.nodes_of(cluster):
        uuid = config.remote_uuid(remote)
        if uuid is not None and uuid not in listed:
            found[remote] = uuid
    return found


def _nodes_without_remote(config: GitConfig, logs: BranchLogs, cluster: UUID) -> list[UUID]:
    """Return the nodes of a cluster that are neither dead, nor this repository, nor a remote of it."""
    here = {config.remote(remote, "annex-uuid") for remote in config.remotes()} | {config.get("annex.uuid")}
    return [
        uuid
        for uuid in sorted(logs.clusters.nodes(cluster))
        if uuid.text not in here and logs.trust.get(uuid) != "dead"
    ]


def replaced_nodes(config: GitConfig, logs: BranchLogs, cluster: UUID, name: str) -> Iterator[Problem]:
    """Yield each remote that leads to another repository instead of a missing node. `name` is the cluster remote."""
    missing = _nodes_without_remote(config, logs, cluster)
    if not missing:
        return
    titles = ", ".join(logs.descriptions.get(uuid) or uuid.text for uuid in missing)
    for remote, uuid in _unlisted_remotes(config, logs, cluster).items():
        now = logs.descriptions.get(uuid) or uuid.text
        yield node_replaced(remote, now, titles, name, missing[0] if len(missing) == 1 else None)


def missing_nodes(view: View) -> list[UUID]:
    """Return the nodes of a cluster without a server that this repository has no remote for."""
    if view.repository is None or view.gateway is not None or not view.uuid.is_cluster:
        return []
    return [uuid for uuid in _nodes_without_remote(view.config, view.logs, view.uuid) if uuid not in view.uuids]


def problems_of_missing(view: View) -> list[Problem]:
    """Describe the nodes that `missing_nodes` returns."""
    missing = missing_nodes(view)
    replaced = list(replaced_nodes(view.config, view.logs, view.uuid, view.label)) if missing else []
    names = view.logs.descriptions
    return replaced or [node_without_remote(uuid, names.get(uuid) or uuid.text, view.label) for uuid in missing]
