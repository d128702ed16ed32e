"""Mistakes in the clusters of a repository that is a gateway, or whose remotes are the nodes. Pure.

Git's configuration says which remotes shall be nodes, cluster.log which are; git annex updatecluster makes the second
like the first.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from cluster_remote.diagnosis.problem import Problem
from cluster_remote.diagnosis.snapshot import Snapshot
from cluster_remote.p2p.key import UUID

__all__ = ["problems_of_own_clusters"]


def problems_of_own_clusters(facts: Snapshot) -> Iterator[Problem]:
    clusters = facts.config.clusters()
    configured: dict[str, dict[str, UUID | None]] = {}
    for remote in facts.config.remotes():
        for name in (facts.config.remote(remote, "annex-cluster-node") or "").lower().split():
            configured.setdefault(name, {})[remote] = facts.uuid_of(remote)
    for name in sorted(configured.keys() - clusters.keys()):
        yield Problem(
            "no-such-cluster",
            f"{', '.join(sorted(configured[name]))} shall be a node of the cluster {name!r}, which this repository "
            "does "
            "not have",
            "Make it (or mend the name in remote.REMOTE.annex-cluster-node):",
            (f"git annex initcluster {shlex.quote(name)}", "git annex updatecluster"),
            about=name,
        )
    for name, cluster in clusters.items():
        yield from _own_cluster(facts, name, cluster, configured.get(name, {}))


def _own_cluster(facts: Snapshot, name: str, cluster: UUID, configured: Mapping[str, UUID | None]) -> Iterator[Problem]:
    listed = facts.logs.clusters.nodes(cluster)
    for remote, uuid in configured.items():
        if uuid is None:
            yield Problem(
                "node-unknown",
                f"{remote} shall be a node of the cluster {name}, but git-annex does not know who it is",
                "Let git-annex ask it, and write it down:",
                (f"git fetch {shlex.quote(remote)}", f"git annex info {shlex.quote(remote)} --fast",
                 "git annex updatecluster"), about=remote,
)  # fmt: skip
        elif uuid not in listed:
            yield Problem(
                "node-not-listed",
                f"{remote} shall be a node of the cluster {name}, but cluster.log does not list it, so nothing is "
                "stored "
                "there",
                "Write it down (each node has to be reachable):",
                ("git annex updatecluster",),
                about=remote,
            )
    elsewhere = {
        uuid for gateway, names in facts.logs.proxied.items() if gateway != facts.uuid for uuid in names.values()
    }
    ours = {each.name for each in facts.ours}
    for uuid in sorted(listed - set(configured.values()) - elsewhere):
        others = [name for name in facts.remotes_with(uuid) if name not in ours]
        for remote in others[:1]:
            yield Problem(
                "node-not-configured",
                f"cluster.log lists {facts.name_of(uuid)} as a node of the cluster {name}, but the remote {remote} "
                "is not "
                "configured to be one, so nothing is stored there",
                "Make it one (or take it out of the list: git annex updatecluster):",
                (f"git config {shlex.quote(f'remote.{remote}.annex-cluster-node')} {shlex.quote(name)}",
                 "git annex updatecluster"), about=remote,
)  # fmt: skip
        if not others:
            yield Problem(
                "node-not-configured",
                f"cluster.log lists {facts.name_of(uuid)} as a node of the cluster {name}, but no remote here leads "
                "there",
                "Take it out of the list (or add a remote for it first, and git config "
                "remote.REMOTE.annex-cluster-node "
                f"{name}):",
                ("git annex updatecluster",),
                about=str(uuid),
            )
