"""Plan a cluster whose nodes are remotes of this repository, without a server. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from cluster_remote.access.settings import BadSettings
from cluster_remote.lifecycle.alias import plan_alias
from cluster_remote.lifecycle.cluster_steps import InitCluster
from cluster_remote.lifecycle.facts import Facts
from cluster_remote.lifecycle.names import checked_remote, cluster_name
from cluster_remote.lifecycle.nodes import Change, check_node, plan_change
from cluster_remote.lifecycle.remotes import Wanted, plan_remote
from cluster_remote.lifecycle.runner import Later
from cluster_remote.lifecycle.steps import Plan, Step
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import few, printable

__all__ = ["Request", "joined", "plan_serverless"]

# The cost of a cluster without a server, below that of every node so that git annex sync uploads once.
_COST = 50


@dataclass(frozen=True)
class Request:
    """The arguments of `setup`; empty means not given. `parameters` are those of initremote."""

    name: str
    url: str = ""
    nodes: tuple[str, ...] = ()
    cluster: str = ""
    parameters: dict[str, str] = field(default_factory=dict)
    share: bool = False
    node_remotes: bool = True
    autoenable: bool = False
    """Whether every clone should have the remote at once."""

    @property
    def counts_as_one(self) -> bool:
        """Whether the remote gets a UUID of its own."""
        return self.parameters.get("tracking") == "remote"


def joined(facts: Facts, request: Request, nodes: Iterable[UUID]) -> tuple[str, UUID | None]:
    """Return the requested cluster: its name in this repository, and its UUID (None: a new one). Raises BadSettings."""
    own = facts.config.clusters()
    if request.cluster:
        return _named(facts, request, own)
    uuid = facts.remote_uuid(request.name)
    if uuid is not None and uuid in facts.logs.aliases:
        uuid = facts.logs.aliases[uuid]
        if uuid not in own.values():
            return _named(facts, replace(request, cluster=uuid.text), own)
    if facts.ours(request.name):
        for name, each in own.items():
            if each == uuid:
                return name, each
    name = cluster_name(request.name)
    if name in own:
        return name, own[name]
    asked = frozenset(nodes)
    # A cluster that has another name in this repository was renamed, or is a different one.
    others = facts.clusters_named(name) - set(own.values())
    listed = {each: facts.logs.clusters.nodes(each) for each in others}
    fitting = sorted(each for each in listed if listed[each] & asked)
    if len(fitting) > 1:
        raise BadSettings(
            f"several clusters are called {name} and have these nodes; choose with --cluster: "
            f"{few(list(map(str, fitting)))}"
        )
    # A cluster without nodes is left over from an undone setup, or was taken down.
    return name, next(iter(fitting or sorted(each for each in listed if not listed[each])), None)


def _named(facts: Facts, request: Request, own: dict[str, UUID]) -> tuple[str, UUID | None]:
    text = request.cluster.lower()
    for name, uuid in own.items():
        if text in (name, uuid.text):
            return name, uuid
    try:
        uuid = UUID(text)
    except ValueError:
        name = cluster_name(text)
        found = sorted(facts.clusters_named(name))
        if len(found) > 1:
            raise BadSettings(
                f"--cluster {text}: several have this name; give the UUID: {few(list(map(str, found)))}"
            ) from None
        return name, found[0] if found else None
    if uuid not in facts.logs.clusters.members:
        raise BadSettings(
            f"--cluster {text}: this repository knows no such cluster; git annex sync --no-content or git fetch "
            "may bring it"
        )
    for wanted in (facts.name_of(uuid) or "", request.name):
        try:
            name = cluster_name(wanted)
        except BadSettings:
            continue
        if name not in own:
            return name, uuid
    raise BadSettings(
        f"this repository already has another cluster called {request.name}; choose another name for the remote"
    )


def plan_serverless(facts: Facts, request: Request) -> Plan:
    """Plan a cluster of this repository's remotes. Raises BadSettings."""
    checked_remote(request.name)
    asked = {remote: check_node(facts, remote) for remote in request.nodes}
    name, uuid = joined(facts, request, asked.values())
    new = uuid is None
    listed = frozenset[UUID]() if uuid is None else facts.logs.clusters.nodes(uuid)
    nodes = list(request.nodes)
    if not nodes:
        # Join the cluster with those of its nodes that are remotes of this repository.
        nodes = [each for each in facts.config.remotes() if _can_join(facts, each, listed)]
        if not nodes:
            raise BadSettings(_without_nodes(facts, request, uuid))
    encrypted = request.counts_as_one and request.parameters.get("encryption", "none") != "none"
    steps: list[Step] = [facts.restore_logs()]
    if new:
        steps.append(InitCluster(name))
    else:
        assert uuid is not None
        steps += facts.setting(f"annex.cluster.{name}", uuid.text)
    change = plan_change(facts, Change(name, uuid, nodes, encrypted=encrypted))
    members = [*nodes, *facts.nodes_here(name)]
    costs = [cost for remote in members if (cost := facts.cost(remote)) is not None]
    config = {"annex-cost": f"{min([_COST, *(cost - 1 for cost in costs)]):g}"}
    if request.counts_as_one:
        wanted = Wanted(request.name, None, {**request.parameters, "cluster": name}, False, config)
    else:
        wanted = Wanted(request.name, uuid or Later(name), request.parameters, not request.share, config)
    notes: tuple[str, ...] = ()
    if uuid is not None and name not in facts.config.clusters() and listed:
        titles = ", ".join(sorted(printable(facts.description(each)) for each in listed))
        notes = (f"Joining the cluster {name} ({uuid}), whose nodes are {titles}.",)
    plan = Plan(notes=notes) + Plan(tuple(steps)) + change
    if request.autoenable or facts.remote_uuid(request.name) in facts.logs.aliases:
        if uuid is None or not listed:
            raise BadSettings(
                "there is no such cluster yet: create it first, with the same command without --autoenable, then "
                "repeat this"
            )
        return plan + plan_alias(facts, replace(wanted, sameas=uuid))
    return plan + plan_remote(facts, wanted)


def _can_join(facts: Facts, remote: str, listed: frozenset[UUID]) -> bool:
    if facts.remote_uuid(remote) not in listed or facts.ours(remote):
        return False
    try:
        check_node(facts, remote)
    except BadSettings:
        return False
    return True


def _without_nodes(facts: Facts, request: Request, uuid: UUID | None) -> str:
    if uuid is None:
        return (
            f"nothing called {request.name} can be set up: give the URL of a gateway, or --node REMOTE "
            "for each remote of this repository to use as a node"
        )
    titles = ", ".join(sorted(printable(facts.description(each)) for each in facts.logs.clusters.nodes(uuid)))
    if not titles:
        return (
            f"the cluster {request.name} has no nodes yet: give --node REMOTE for each remote of this repository to "
            "use as a node"
        )
    return (
        f"no node of the cluster {request.name} is a remote of this repository; make some of them remotes (git remote "
        f"add NODE URL), or give the URL of a gateway. Its nodes are {titles}"
    )
