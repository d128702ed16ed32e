"""Find remotes made with uuid= instead of --sameas, which have taken over the UUID of a cluster or a node. Pure.

Everybody then sees the remote's name as the description, and its configuration under the cluster's UUID.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.diagnosis.problem import Problem
from cluster_remote.diagnosis.snapshot import Snapshot
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import as_command

__all__ = ["made_with_uuid", "misused_uuids"]


def misused_uuids(config: GitConfig, logs: BranchLogs) -> dict[str, UUID]:
    """Return the remotes, by name, that were made with uuid= instead of --sameas, with the UUIDs they have taken over.

    A cluster is never a special remote of any type; a node can be one, but not one that leads through a gateway.
    """
    found: dict[str, UUID] = {}
    for name in config.remotes():
        uuid = config.remote_uuid(name)
        if uuid not in logs.remotes or config.remote(name, "annex-config-uuid") or config.remote(name, "url"):
            continue
        ours = config.remote(name, "annex-externaltype") == "cluster"
        assert uuid is not None
        if uuid in logs.aliases:
            continue
        if uuid.is_cluster or (ours and _is_repository(logs, uuid)):
            found[name] = uuid
    return found


def made_with_uuid(facts: Snapshot) -> Iterator[Problem]:
    """Yield a problem for each remote that `misused_uuids` finds."""
    for name, uuid in misused_uuids(facts.config, facts.logs).items():
        what = "cluster" if uuid.is_cluster else "node"
        parameters = facts.logs.remotes.get(uuid, {})
        description = facts.earlier.get(uuid) or _default_description(facts, uuid)
        commands = [as_command("git remote remove", name), as_command("git annex describe", uuid.text, description)]
        remedy = "Remove it, and restore the description."
        if parameters.get("externaltype") == "cluster":
            commands += _right_commands(facts, name, uuid, parameters.get("url", ""))
            remedy += " Then make a remote with --sameas; it needs another name."
        yield Problem(
            "made-with-uuid",
            f"the remote {name} was made with uuid= and has taken the place of the {what} itself: everybody sees "
            f"the {what} under the name {facts.name_of(uuid)!r} and with this remote's configuration",
            f"{remedy} Tell others not to enable {name}:",
            tuple(commands),
            about=name,
        )


def _right_commands(facts: Snapshot, old: str, uuid: UUID, url: str) -> list[str]:
    """Return the commands that create the remote as intended."""
    name = _free_name(facts, old)
    if uuid.is_cluster and url:
        return [as_command("cluster-remote setup", name, url, options=f"--cluster {uuid}")]
    where = [] if uuid.is_cluster else [f"url={url}"]
    made = as_command(
        "git annex initremote",
        name,
        "type=external",
        "externaltype=cluster",
        "encryption=none",
        *where,
        options=f"--sameas={uuid} --private",
    )
    if uuid.is_cluster:
        return [made]
    cost = facts.cost(old) + 1
    return [
        made,
        f"git config {shlex.quote(f'remote.{name}.annex-sync')} false",
        f"git config {shlex.quote(f'remote.{name}.annex-cost')} {cost:g}",
    ]


def _is_repository(logs: BranchLogs, uuid: UUID) -> bool:
    """Return whether a UUID belongs to a cluster, a node, a gateway or a repository behind one, not to a remote."""
    return (
        uuid.is_cluster
        or any(uuid in nodes for nodes in logs.clusters.members.values())
        or any(uuid in names.values() for names in logs.proxied.values())
        or uuid in logs.proxied
    )


def _default_description(facts: Snapshot, uuid: UUID) -> str:
    for names in facts.logs.proxied.values():
        for name, proxied in names.items():
            if proxied == uuid:
                return f"cluster {name}" if uuid.is_cluster else name
    return "cluster" if uuid.is_cluster else str(uuid)


def _free_name(facts: Snapshot, old: str) -> str:
    """Return a name that no remote has had: git-annex does not reuse names."""
    taken = {each.get("sameas-name") or each.get("name") for each in facts.logs.remotes.values()}
    taken |= set(facts.config.remotes())
    number, name = 2, f"{old}-2"
    while name in taken:
        number += 1
        name = f"{old}-{number}"
    return name
