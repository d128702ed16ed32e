"""Mistakes in the clusters of a repository that is a gateway, or whose remotes are the nodes. Pure.

git's configuration says which remotes should be nodes, cluster.log which ones are; git annex updatecluster updates the
log.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from cluster_remote.cluster.membership import Direct, way_to
from cluster_remote.diagnosis.problem import Problem
from cluster_remote.diagnosis.problems import node_without_remote
from cluster_remote.diagnosis.replaced import replaced_nodes
from cluster_remote.diagnosis.snapshot import Snapshot
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import as_command
from cluster_remote.transport.address import Directory

__all__ = ["problems_of_own_clusters"]


def problems_of_own_clusters(facts: Snapshot) -> Iterator[Problem]:
    """Yield the mistakes in all clusters of this repository."""
    clusters = facts.config.clusters()
    configured: dict[str, dict[str, UUID | None]] = {}
    for remote in facts.config.remotes():
        for name in facts.config.clusters_of(remote):
            configured.setdefault(name, {})[remote] = facts.config.remote_uuid(remote)
    for name in sorted(configured.keys() - clusters.keys()):
        yield Problem(
            "no-such-cluster",
            f"{', '.join(sorted(configured[name]))} is configured as a node of the cluster {name!r}, which this "
            "repository does not have",
            "Create it (or correct the name in remote.REMOTE.annex-cluster-node):",
            (as_command("git annex initcluster", name), "git annex updatecluster"),
            about=name,
        )
    for name, cluster in clusters.items():
        yield from _own_cluster(facts, name, cluster, configured.get(name, {}))


def _own_cluster(facts: Snapshot, name: str, cluster: UUID, configured: Mapping[str, UUID | None]) -> Iterator[Problem]:
    label = next((ours.name for ours in facts.cluster_remotes if ours.uuid == cluster), name)
    replaced = list(replaced_nodes(facts.config, facts.logs, cluster, label))
    yield from replaced
    listed = facts.logs.clusters.nodes(cluster)
    for remote, uuid in configured.items():
        if uuid is None:
            yield _unknown(facts, name, remote)
        elif uuid not in listed and not replaced:
            yield Problem(
                "node-not-listed",
                f"{remote} is configured as a node of the cluster {name}, but cluster.log does not list it, so nothing "
                "is stored there",
                "Add it to cluster.log (each node has to be reachable):",
                ("git annex updatecluster",),
                about=remote,
            )
    elsewhere = {
        uuid for gateway, names in facts.logs.proxied.items() if gateway != facts.uuid for uuid in names.values()
    }
    ours = {each.name for each in facts.cluster_remotes}
    for uuid in sorted(listed - set(configured.values()) - elsewhere - {facts.uuid}):
        others = [name for name in facts.remotes_with(uuid) if name not in ours]
        if others:
            setting = f"remote.{others[0]}.annex-cluster-node"
            yield Problem(
                "node-not-configured",
                f"cluster.log lists {facts.name_of(uuid)} as a node of the cluster {name}, but the remote {others[0]} "
                "is not configured as one, so nothing is stored there",
                "Configure it (or take it out of cluster.log: git annex updatecluster):",
                (as_command("git config", setting, name), "git annex updatecluster"),
                about=others[0],
            )
        elif not replaced:
            yield node_without_remote(uuid, facts.name_of(uuid), name)


def _unknown(facts: Snapshot, name: str, remote: str) -> Problem:
    commands = [
        as_command("git fetch", remote),
        as_command("git annex info", remote, options="--fast"),
        "git annex updatecluster",
    ]
    way = way_to(facts.config, remote, facts.directory)
    if isinstance(way, Direct) and isinstance(way.address, Directory):
        # This does nothing if the repository is initialised already.
        commands.insert(0, f"git -C {shlex.quote(way.address.path)} annex init")
    return Problem(
        "node-unknown",
        f"{remote} is configured as a node of the cluster {name}, but git-annex does not know its UUID",
        "Have git-annex initialise the repository and ask it, then add it to cluster.log:",
        tuple(commands),
        about=remote,
    )
