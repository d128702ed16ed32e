"""Decide which remotes can be nodes, and plan changes of a cluster's nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster_remote.access.settings import BadSettings
from cluster_remote.cluster.membership import Direct, special_settings, way_to
from cluster_remote.lifecycle.alias import aliases
from cluster_remote.lifecycle.cluster_steps import CheckNodes, RecordNodes
from cluster_remote.lifecycle.facts import Facts
from cluster_remote.lifecycle.names import checked_remote
from cluster_remote.lifecycle.runner import Later
from cluster_remote.lifecycle.steps import Command, Plan, Step
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import as_command, printable
from cluster_remote.transport.address import Directory

__all__ = ["Change", "check_node", "contacted", "directory_of", "plan_change", "uninitialised"]


def check_node(facts: Facts, remote: str) -> UUID:
    """Return the UUID of a remote that can be a node. Raises BadSettings, with a remedy if there is one."""
    config, logs = facts.config, facts.logs
    checked_remote(remote)
    if remote not in config.remotes():
        raise BadSettings(f"--node {remote}: this repository has no such remote (git remote lists them)")
    uuid = facts.remote_uuid(remote)
    if uuid is None:
        raise BadSettings(
            f"--node {remote}: git-annex does not know its UUID: is it reachable, and has git annex init "
            f"been run there? If so: {as_command('git fetch', remote)} && {as_command('git annex info', remote)}"
        )
    if uuid == facts.uuid:
        raise BadSettings(f"--node {remote}: this is the repository that the cluster is for")
    if uuid.is_cluster:
        raise BadSettings(
            f"--node {remote}: this is a cluster itself, and does not give access to its single nodes; make "
            "its nodes remotes of this repository, and use those"
        )
    if logs.trust.get(uuid) == "dead":
        raise BadSettings(
            f"--node {remote}: this repository was declared dead; if it is not: "
            + as_command("git annex semitrust", remote)
        )
    settings = special_settings(facts.config, remote, facts.logs)
    if settings.get("exporttree") == "yes" and settings.get("annexobjects") != "yes":
        raise BadSettings(
            f"--node {remote}: git-annex accepts a special remote with exporttree=yes only if it has annexobjects=yes "
            f"too: {as_command('git annex enableremote', remote, 'annexobjects=yes')}"
        )
    _check_way(facts, remote, settings)
    return uuid


def _check_way(facts: Facts, remote: str, settings: Mapping[str, str]) -> None:
    if settings.get("type", "git") != "git" or facts.config.remote(remote, "annex-externaltype"):
        return
    way = way_to(facts.config, remote, facts.repository.directory)
    if isinstance(way, Direct):
        top = facts.repository.work_tree
        if isinstance(way.address, Directory) and top is not None:
            there = Path(way.address.path).resolve()
            if there.is_relative_to(top.resolve()):
                raise BadSettings(
                    f"--node {remote}: {printable(str(there))} is inside the work tree of this repository, where "
                    "anyone who commits to it can put programs; move it elsewhere"
                )
        return
    url = facts.config.remote(remote, "annexurl") or facts.config.remote(remote, "url") or ""
    scheme = url.partition("://")[0] if "://" in url else url.partition("::")[0] if "::" in url else ""
    if scheme and scheme.lower() not in {"ssh", "file", "ssh+git", "git+ssh"}:
        raise BadSettings(
            f"--node {remote}: a node cannot be at {printable(scheme)}…; a node is a directory, a "
            "repository over ssh, HTTP (annexUrl) or a P2P network, or a special remote"
        )


def directory_of(facts: Facts, remote: str) -> Path | None:
    """Return a remote's directory on this machine."""
    way = way_to(facts.config, remote, facts.repository.directory)
    return Path(way.address.path) if isinstance(way, Direct) and isinstance(way.address, Directory) else None


def uncontacted(facts: Facts, nodes: Iterable[str]) -> list[str]:
    """Return the remotes whose UUIDs git-annex does not know yet."""
    return [each for each in nodes if each in facts.config.remotes() and facts.remote_uuid(each) is None]


async def contacted(facts: Facts, nodes: Iterable[str]) -> Facts:
    """Have git-annex contact remotes to learn their UUIDs, if it does not know them yet. Raises AnnexError."""
    if not uncontacted(facts, nodes):
        return facts
    await facts.repository.run("git", "annex", "info", "--fast", "--json", timeout=120.0)
    return await Facts.read(facts.repository)


def uninitialised(facts: Facts, nodes: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yield the requested nodes that are git repositories on this machine, but not initialised by git-annex."""
    for remote in uncontacted(facts, nodes):
        path = directory_of(facts, remote)
        top = facts.repository.work_tree
        if path is None or (top is not None and path.resolve().is_relative_to(top.resolve())):
            continue
        if (path / ".git").exists() or (path / "HEAD").is_file():
            yield remote, path


@dataclass(frozen=True)
class Change:
    """The nodes that a cluster of this repository gains and loses. `uuid` is None for a new cluster.

    `encrypted`: git annex sync must not send unencrypted content to any node.
    """

    cluster: str
    uuid: UUID | None
    gains: Sequence[str] = ()
    loses: Sequence[str] = ()
    """Remotes that are no longer nodes."""
    lost: Collection[UUID] = ()
    """Former nodes without a remote here."""
    encrypted: bool = False


def plan_change(facts: Facts, change: Change) -> Plan:
    """Plan a change of a cluster's nodes; `annex.cluster.NAME` is set by earlier steps. Raises BadSettings."""
    name = change.cluster
    gained = {remote: check_node(facts, remote) for remote in change.gains}
    listed = frozenset[UUID]() if change.uuid is None else facts.logs.clusters.nodes(change.uuid)
    leaving = frozenset(uuid for each in change.loses if (uuid := facts.remote_uuid(each))) | frozenset(change.lost)
    # A repository that leaves and is gained stays: two remotes may lead to it.
    wanted = (listed - leaving) | frozenset(gained.values())
    steps: list[Step] = []
    for remote in change.gains:
        if name not in facts.config.clusters_of(remote):
            steps += facts.node_of(remote, [*facts.config.clusters_of(remote), name])
        if change.encrypted:
            steps += facts.setting(f"remote.{remote}.annex-sync", "false")
    for remote in facts.config.remotes():
        if facts.remote_uuid(remote) in leaving and name in facts.config.clusters_of(remote):
            steps += facts.node_of(remote, [each for each in facts.config.clusters_of(remote) if each != name])
    steps += _recorded(facts, change, listed, wanted, {*gained.values()})
    notes: tuple[str, ...] = ()
    if change.encrypted and gained:
        notes = (
            f"git annex sync now skips {', '.join(gained)} (annex-sync=false): it would store unencrypted content "
            "there, and the encryption key.",
        )
    return Plan(tuple(steps), notes)


def _recorded(
    facts: Facts, change: Change, listed: frozenset[UUID], wanted: frozenset[UUID], gained: set[UUID]
) -> Iterator[Step]:
    """Yield the steps that write cluster.log and proxy.log: git annex updatecluster, if it does no harm.

    That command removes all nodes that are not remotes of this repository from all of its clusters.
    """
    here: dict[str, set[UUID]] = {}
    clusters = {**facts.config.clusters(), **({change.cluster: change.uuid} if change.uuid else {})}
    for cluster in clusters:
        here[cluster] = {uuid for uuid in facts.nodes_here(cluster).values() if uuid is not None}
    here.setdefault(change.cluster, set())
    here[change.cluster] = (here[change.cluster] | gained) & set(wanted)
    elsewhere = wanted - here[change.cluster] or any(
        facts.logs.clusters.nodes(uuid) - here[cluster]
        for cluster, uuid in clusters.items()
        if cluster != change.cluster
    )
    if wanted != listed:
        if elsewhere:
            yield Command(("git", "annex", "updateproxy"), shares=True)
            uuid = change.uuid or Later(change.cluster)
            yield RecordNodes(uuid, wanted, "git annex updatecluster would remove nodes without a remote here")
        else:
            yield Command(("git", "annex", "updatecluster"), shares=True)
    elif wanted:
        proxied = set(facts.logs.proxied.get(facts.uuid, {}).values())
        if change.uuid not in proxied or here[change.cluster] - proxied:
            yield Command(("git", "annex", "updateproxy"), shares=True)
    if change.uuid is not None:
        for alias in aliases(facts, change.uuid):
            if facts.logs.clusters.nodes(alias.uuid) != wanted:
                yield RecordNodes(alias.uuid, wanted, f"{alias.name} is the cluster's remote in every clone")
    if wanted != listed or gained:
        yield CheckNodes(change.cluster, wanted)
