"""Plan changes of an existing cluster: add and remove nodes, rename it, take it down. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster_remote.access.settings import BadSettings
from cluster_remote.lifecycle.cluster_steps import CheckNodes, Describe
from cluster_remote.lifecycle.facts import Facts
from cluster_remote.lifecycle.names import checked_remote, cluster_name
from cluster_remote.lifecycle.nodes import Change, plan_change
from cluster_remote.lifecycle.remote_steps import RemoveRemote, Rename, Verify
from cluster_remote.lifecycle.remotes import recreated
from cluster_remote.lifecycle.steps import Command, Plan, Step
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import as_command, few, printable

__all__ = [
    "OwnCluster",
    "node_named",
    "own_cluster",
    "plan_add",
    "plan_remove",
    "plan_rename",
    "plan_take_down",
    "remote_of",
]


@dataclass(frozen=True)
class OwnCluster:
    """A cluster of this repository: its name in git's configuration, and this repository's remote for it, if any."""

    name: str
    uuid: UUID
    remote: str | None
    encrypted: bool
    """Whether its content is encrypted, so that git annex sync must not send unencrypted content to its nodes."""


def own_cluster(facts: Facts, named: str) -> OwnCluster:
    """Return the cluster with this name, or with a remote of this name. Raises BadSettings."""
    own = facts.config.clusters()
    if facts.ours(named):
        stored = facts.stored_of(named)
        parameters = {} if stored is None else stored.parameters
        if parameters.get("url"):
            raise BadSettings(
                f"{named} leads to a gateway, and only the gateway can change its nodes: run this there, with the "
                "cluster's name"
            )
        uuid = facts.remote_uuid(named)
        for name, each in own.items():
            if each == uuid or parameters.get("cluster", "").lower() in (name, each.text):
                return OwnCluster(name, each, named, parameters.get("encryption", "none") != "none")
        raise BadSettings(
            f"the cluster of {named} is not set up in this repository: {as_command('cluster-remote setup', named)}"
        )
    name = named.lower()
    if name in own:
        remotes = (each for each in facts.config.remotes() if facts.ours(each))
        return OwnCluster(name, own[name], next((r for r in remotes if facts.remote_uuid(r) == own[name]), None), False)
    known = ", ".join(sorted({*own, *(each for each in facts.config.remotes() if facts.ours(each))}))
    raise BadSettings(f"this repository has no cluster {named!r}" + (f"; it has {known}" if known else ""))


def node_named(facts: Facts, own: OwnCluster, text: str) -> UUID:
    """Return the node with this remote, description or UUID. Raises BadSettings."""
    nodes = facts.logs.clusters.nodes(own.uuid)
    found = {uuid for uuid in nodes if text in (uuid.text, facts.logs.descriptions.get(uuid))}
    if text in facts.config.remotes() and (uuid := facts.remote_uuid(text)) is not None:
        found |= {uuid} & nodes
    if len(found) == 1:
        return found.pop()
    names = few(sorted(_title(facts, uuid) for uuid in nodes))
    if found:
        raise BadSettings(f"{text}: several nodes have this name; give a UUID: {few(sorted(map(str, found)))}")
    raise BadSettings(f"{text} is not a node of the cluster {own.name}; its nodes are {names or 'none'}")


def _title(facts: Facts, uuid: UUID) -> str:
    remote = remote_of(facts, uuid)
    return printable(facts.description(uuid)) + (f" ({remote})" if remote else "")


def remote_of(facts: Facts, uuid: UUID) -> str | None:
    """Return the remote of this repository that leads to a node."""
    return next((each for each in facts.config.remotes() if facts.remote_uuid(each) == uuid), None)


def plan_add(facts: Facts, own: OwnCluster, nodes: Sequence[str]) -> Plan:
    """Plan adding nodes to a cluster. Raises BadSettings."""
    change = plan_change(facts, Change(own.name, own.uuid, nodes, encrypted=own.encrypted))
    cost: tuple[Step, ...] = ()
    if own.remote is not None and (costs := [each for node in nodes if (each := facts.cost(node)) is not None]):
        now = facts.cost(own.remote)
        if now is not None and min(costs) <= now:
            # git annex sync should upload to the cluster rather than to each node.
            cost = facts.setting(f"remote.{own.remote}.annex-cost", f"{min(costs) - 1:g}")
    return Plan((facts.restore_logs(),)) + change + Plan(cost)


def plan_remove(facts: Facts, own: OwnCluster, node: UUID, *, dead: bool = False) -> Plan:
    """Plan removing a node from a cluster. Raises BadSettings."""
    listed = facts.logs.clusters.nodes(own.uuid)
    if listed <= {node}:
        raise BadSettings(
            f"{_title(facts, node)} is the only node of the cluster; to take the cluster down: "
            + as_command("cluster-remote remove", own.remote or own.name, options="--cluster")
        )
    plan = Plan((facts.restore_logs(),)) + plan_change(facts, Change(own.name, own.uuid, lost=(node,)))
    if dead:
        plan += Plan((Command(("git", "annex", "dead", node.text), shares=True),))
    return plan


def plan_rename(facts: Facts, old: str, new: str) -> Plan:
    """Plan renaming a remote, the remotes of its nodes, and a cluster of this repository. Raises BadSettings."""
    checked_remote(new)
    taken = set(facts.config.remotes())
    if not facts.ours(old):
        raise BadSettings(f"this repository has no cluster remote {old!r}")
    names = {each: new + each.removeprefix(old) for each in (old, *node_remotes(facts, old))}
    for each in names.values():
        if each in taken or facts.stored_named(each):
            raise BadSettings(f"a remote {each!r} exists already; choose another name")
    steps: list[Step] = [facts.restore_logs()]
    stored = facts.stored_of(old)
    parameters = {} if stored is None else stored.parameters
    uuid = facts.remote_uuid(old)
    own = {name for name, each in facts.config.clusters().items() if each == uuid}
    if not parameters.get("url") and old.lower() in own and uuid is not None:
        steps += _renamed_cluster(facts, old.lower(), cluster_name(new), uuid)
    for before, after in names.items():
        log = facts.stored_of(before)
        steps.append(Rename(before, after, shares=log is not None and not log.private))
        if log is not None:
            steps.append(Verify(after, log.given))
    return Plan(tuple(steps))


def _renamed_cluster(facts: Facts, old: str, new: str, uuid: UUID) -> Iterator[Step]:
    if new in facts.config.clusters():
        raise BadSettings(f"this repository has a cluster {new!r} already; choose another name")
    yield from facts.setting(f"annex.cluster.{new}", uuid.text)
    for remote in facts.nodes_here(old):
        yield from facts.node_of(remote, [new if each == old else each for each in facts.config.clusters_of(remote)])
    yield from facts.setting(f"annex.cluster.{old}", None)
    if facts.logs.descriptions.get(uuid, "").lower() == f"cluster {old}":
        yield Describe(uuid, f"cluster {new}", facts.logs.descriptions[uuid])
    yield Command(("git", "annex", "updateproxy"), shares=True)


def node_remotes(facts: Facts, name: str) -> list[str]:
    """Return the remotes that `setup` made for single nodes behind a gateway."""
    stored = facts.stored_of(name)
    url = "" if stored is None else stored.parameters.get("url", "")
    found: list[str] = []
    for each in facts.config.remotes():
        theirs = facts.stored_of(each) if each.startswith(f"{name}-") and facts.ours(each) else None
        if url and theirs is not None and theirs.parameters.get("url", "").partition("?")[0] == url.partition("?")[0]:
            found.append(each)
    return found


def plan_take_down(facts: Facts, name: str, *, cluster: bool) -> Plan:
    """Plan removing a remote and, with `cluster`, a cluster of this repository. Raises BadSettings."""
    own = own_cluster(facts, name) if cluster else None
    remote = name if facts.ours(name) else own.remote if own is not None else None
    if remote is None and own is None:
        raise BadSettings(
            f"this repository has no cluster remote {name!r}; to take down a cluster without one, add --cluster"
        )
    steps: list[Step] = [facts.restore_logs()]
    notes: list[str] = []
    if remote is not None:
        for each in (*node_remotes(facts, remote), remote):
            stored = facts.stored_of(each)
            steps.append(RemoveRemote(each, recreated(facts, each, stored)))
            if stored is not None and not stored.private:
                notes.append(f"Others share the configuration of {each}, so it stays in the git-annex branch.")
    if own is not None:
        listed = facts.logs.clusters.nodes(own.uuid)
        here = list(facts.nodes_here(own.name))
        steps += plan_change(facts, Change(own.name, own.uuid, loses=here, lost=tuple(listed))).steps
        steps = [step for step in steps if not isinstance(step, CheckNodes)] + [CheckNodes(own.name, frozenset())]
        steps += facts.setting(f"annex.cluster.{own.name}", None)
        steps.append(Command(("git", "annex", "updateproxy"), shares=True))
    notes.append("The nodes keep their content, and git-annex still knows where it is.")
    return Plan(tuple(steps), tuple(notes))
