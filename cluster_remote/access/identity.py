"""Resolve which repository a remote refers to, and how to display it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from cluster_remote.access.settings import BadSettings, Settings
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import few

if TYPE_CHECKING:
    from cluster_remote.annex.branchlog import BranchLogs
    from cluster_remote.annex.gitconfig import GitConfig

__all__ = [
    "believed",
    "candidates",
    "display_name",
    "named_repository",
    "node_named",
    "not_recorded",
    "wanted_server",
]


def display_name(uuid: UUID, descriptions: Mapping[UUID, str]) -> str:
    """Return a repository's display name: its description, or its UUID if it has none."""
    return descriptions.get(uuid) or str(uuid)


def named_repository(name: str, logs: BranchLogs, own_clusters: Mapping[str, UUID]) -> UUID:
    """Return the repository or cluster that `cluster=` names: by UUID, or by a gateway's name for it.

    Raises BadSettings.
    """
    if (uuid := UUID.if_valid(name)) is not None:
        return uuid
    found = {names[name] for names in logs.proxied.values() if name in names}
    if name in own_clusters:
        found.add(own_clusters[name])
    if len(found) == 1:
        return found.pop()
    if found:
        raise BadSettings(
            f"cluster={name}: several clusters have this name; give the UUID: {few(sorted(map(str, found)))}"
        )
    raise BadSettings(
        f"cluster={name}: this repository knows no cluster of that name; give its UUID (on the gateway: git config "
        f"{shlex.quote(f'annex.cluster.{name}')}), or fetch the gateway's git-annex branch first"
    )


def wanted_server(settings: Settings, logs: BranchLogs, own_clusters: Mapping[str, UUID]) -> UUID | None:
    """Return the repository to request at the address; None for the one at the address. Raises BadSettings."""
    if settings.is_alias:
        return named_repository(settings.cluster, logs, own_clusters)
    if settings.tracking == "nodes" or settings.sameas:
        # A sameas remote never refers to any other repository (git annex testremote enables chunks and encryption
        # without INITREMOTE).
        return settings.uuid
    return named_repository(settings.cluster, logs, own_clusters) if settings.cluster else None


def believed(
    named: Collection[UUID], remote: UUID, logs: BranchLogs, own: UUID
) -> tuple[frozenset[UUID], frozenset[UUID]]:
    """Split the repositories named in an answer into those that the location log may record, and the others.

    A cluster may speak for its nodes according to cluster.log, a repository for itself, and neither for `own`, the
    local repository. A cluster's presence follows from its nodes, so clusters are in neither part. `remote` is the UUID
    of the remote that answered.
    """
    nodes = logs.clusters.nodes(remote) if remote.is_cluster else frozenset({remote})
    named = frozenset(uuid for uuid in named if not uuid.is_cluster)
    credible = named & nodes - {own}
    return credible, named - credible


def not_recorded(name: str, others: Collection[UUID]) -> str:
    """Return a warning that a remote named repositories that it cannot speak for."""
    return (
        f"{name} names repositories that are not its nodes according to cluster.log; they are not recorded: "
        f"{few(sorted(map(str, others)))}"
    )


def candidates(server: UUID, logs: BranchLogs) -> list[UUID]:
    """Return what a remote at a server's address can be sameas: its clusters, or else the server itself."""
    return sorted(uuid for uuid in logs.proxied.get(server, {}).values() if uuid.is_cluster) or [server]


def node_named(text: str, config: GitConfig, logs: BranchLogs, cluster: UUID | None = None) -> UUID:
    """Find a repository by its UUID, its description, a local remote's name, or its gateway's name for it.

    If several match, nodes of `cluster` take precedence, then the remote here, whose name others cannot change. Raises
    BadSettings.
    """
    if (uuid := UUID.if_valid(text)) is not None:
        return uuid
    found = {uuid for uuid, description in logs.descriptions.items() if description == text}
    found |= {names[text] for names in logs.proxied.values() if text in names}
    own = config.remote_uuid(text)
    if own is not None:
        found.add(own)
    if len(found) > 1 and cluster is not None:
        found = found & logs.clusters.nodes(cluster) or found
    if own is not None and own in found:
        return own
    if len(found) == 1:
        return found.pop()
    if found:
        raise BadSettings(f"--node {text}: several repositories match; give a UUID: {few(sorted(map(str, found)))}")
    known = sorted({name for names in logs.proxied.values() for name, uuid in names.items() if not uuid.is_cluster})
    raise BadSettings(
        f"--node {text}: no such node is known here; "
        + (f"its gateways have {few(known)}" if known else "give its UUID")
    )
