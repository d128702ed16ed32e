"""The mistakes that are known to be made with cluster remotes: how each shows, and what mends it. Pure.

What git-annex does with each of them was observed with git-annex 10.20261026.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.repository import GitConfig
from cluster_remote.annex.verification import Pending
from cluster_remote.cluster.membership import cost_of, way_to
from cluster_remote.diagnosis.checkup import Finding, Server
from cluster_remote.p2p.key import UUID
from cluster_remote.remote.settings import Settings

__all__ = ["Branch", "Facts", "Ours", "find_mistakes", "find_notes", "mistakes_of_servers"]

# What a sync is to find cheapest without a server.
_SERVERLESS_COST = 50.0
# The version of the protocol from which on a server names the repositories that stored a content.
_PLUS = 2


@dataclass(frozen=True)
class Ours:
    """A remote of this repository that this program serves.

    `config_uuid` is the UUID of its configuration, which is another one where the remote is the same as a repository.
    `parameters` is what remote.log has of it, `verified` what the user has said to be safe. `settings` is None, and
    `unusable` says why, where the parameters cannot be used.
    """

    name: str
    uuid: UUID
    config_uuid: UUID
    parameters: Mapping[str, str]
    verified: Mapping[str, str] | None
    pending: Pending | None = None
    settings: Settings | None = None
    unusable: str = ""

    @property
    def quoted(self) -> str:
        """The name for a shell."""
        return shlex.quote(self.name)

    @property
    def sameas(self) -> bool:
        """Whether it is the same as a repository or a cluster, as it should be where that is what it tracks."""
        return self.config_uuid != self.uuid

    @property
    def is_cluster(self) -> bool:
        """Whether it stands for a cluster whose nodes are the copies."""
        return self.uuid.is_cluster and self.settings is not None and self.settings.tracking == "nodes"


@dataclass(frozen=True)
class Branch:
    """The git-annex branch of a git remote: as it was fetched, and as it is there. None where there is none."""

    remote: str
    fetched: str | None
    there: str | None


@dataclass(frozen=True)
class Facts:
    """All that the mistakes show in.

    `place` is this repository's directory. `ours` are the remotes to be looked at; `everything` says whether these are
    all, so that the repository as a whole is looked at too. `earlier` are descriptions that repositories had before
    they were overwritten. `readable` are files with secrets that others can read.
    """

    place: Path
    uuid: UUID
    config: GitConfig
    logs: BranchLogs
    ours: tuple[Ours, ...]
    everything: bool = True
    branches: tuple[Branch, ...] = ()
    earlier: Mapping[UUID, str] = field(default_factory=dict)
    readable: tuple[Path, ...] = ()

    def name_of(self, uuid: UUID) -> str:
        """What to call a repository before people."""
        return self.logs.descriptions.get(uuid) or str(uuid)

    def remotes_with(self, uuid: UUID) -> list[str]:
        """The remotes of this repository that are the given one."""
        return [name for name in self.config.remotes() if self.config.remote(name, "annex-uuid") == uuid.text]

    def cost(self, remote: str) -> float:
        """What git-annex takes a remote to cost."""
        for ours in self.ours:
            if ours.name == remote and ours.settings is not None and not self.config.remote(remote, "annex-cost"):
                return float(ours.settings.cost)
        return cost_of(self.config, remote, way_to(self.config, remote, self.place), self.logs)


def find_mistakes(facts: Facts) -> Iterator[Finding]:
    """What is wrong, remote by remote, then with the repository as a whole."""
    if facts.everything:
        # First, for it is in the way of what mends the others.
        yield from _left_over(facts)
    for ours in facts.ours:
        yield from _unusable(ours)
        yield from _made_with_uuid(facts, ours)
        yield from _encrypted(ours)
        yield from _not_verified(facts, ours)
        if ours.is_cluster and ours.sameas:
            yield from _cluster_unknown(facts, ours)
            yield from _node_remotes_missing(facts, ours)
            yield from _costs(facts, ours)
    if facts.everything:
        yield from _own_clusters(facts)
        yield from _not_fetched(facts)
    for file in facts.readable:
        yield Finding(
            "readable-by-others",
            str(file),
            f"{file} holds a secret, and others than its owner can read or change it",
            "Take that right away from them (and think of a new token, if you do not trust all of them):",
            (f"chmod go-rwx {shlex.quote(str(file))}",),
        )


def _unusable(ours: Ours) -> Iterator[Finding]:
    if ours.unusable:
        yield Finding(
            "settings-unusable",
            ours.name,
            f"the parameters of the remote {ours.name} cannot be used: {ours.unusable}",
            "Give it one that can be used; this shows what each of them means:",
            ("git annex initremote --whatelse type=external externaltype=cluster",),
        )


def _made_with_uuid(facts: Facts, ours: Ours) -> Iterator[Finding]:
    """uuid= instead of --sameas: the remote has taken the place of the cluster or node itself."""
    if ours.sameas or not _is_somebody(facts, ours.uuid):
        return
    what = "cluster" if ours.uuid.is_cluster else "node"
    description = facts.earlier.get(ours.uuid) or _default_description(facts, ours.uuid)
    commands = [f"git remote remove {ours.quoted}", f"git annex describe {ours.uuid} {shlex.quote(description)}"]
    address = ours.parameters.get("url", "")
    name = _free_name(facts, ours)
    if ours.uuid.is_cluster and address:
        commands.append(f"cluster-remote setup {shlex.quote(name)} {shlex.quote(address)} --cluster {ours.uuid}")
    else:
        parameters = "type=external externaltype=cluster encryption=none" + (
            f" {shlex.quote(f'url={address}')}" if address else ""
        )
        commands.append(f"git annex initremote {shlex.quote(name)} --sameas={ours.uuid} --private {parameters}")
    yield Finding(
        "made-with-uuid",
        ours.name,
        f"the remote {ours.name} was made with uuid= and so has taken the place of the {what} itself: everybody sees "
        "the "
        f"{what} under the name {facts.name_of(ours.uuid)!r} and with this remote's configuration",
        "Remove it, give the description back, and make a remote that is the same as the "
        f"{what} instead. (The old name stays taken.) Tell others not to enable {ours.name}:",
        tuple(commands),
    )


def _is_somebody(facts: Facts, uuid: UUID) -> bool:
    """Whether there is a cluster, a node or something behind a gateway with this UUID, so that it is no remote's "
    "own."""
    return (
        uuid.is_cluster
        or any(uuid in nodes for nodes in facts.logs.clusters.members.values())
        or any(uuid in names.values() for names in facts.logs.proxied.values())
        or uuid in facts.logs.proxied
    )


def _default_description(facts: Facts, uuid: UUID) -> str:
    for names in facts.logs.proxied.values():
        for name, proxied in names.items():
            if proxied == uuid:
                return f"cluster {name}" if uuid.is_cluster else name
    return "cluster" if uuid.is_cluster else str(uuid)


def _free_name(facts: Facts, ours: Ours) -> str:
    """A name that no remote has had: git-annex does not give one away again."""
    taken = {each.get("sameas-name") or each.get("name") for each in facts.logs.remotes.values()}
    taken |= set(facts.config.remotes())
    number, name = 2, f"{ours.name}-2"
    while name in taken:
        number += 1
        name = f"{ours.name}-{number}"
    return name


def _encrypted(ours: Ours) -> Iterator[Finding]:
    """Encryption where the nodes are to be tracked: git-annex encrypts, so what they get is no copy of any key."""
    encryption = (ours.verified or {}).get("encryption", "none")
    if not ours.sameas or encryption == "none":
        return
    yield Finding(
        "encrypted",
        ours.name,
        f"the remote {ours.name} is the same as {'a cluster' if ours.uuid.is_cluster else 'a node'}, but has "
        f"encryption={encryption}: what it stores are no copies that anybody could count or read without it",
        "Make it a remote without encryption; content that was stored encrypted stays where it is, so store it again "
        "afterwards. (For an encrypted remote that counts as one copy: cluster-remote setup --tracking remote "
        "--encryption shared):",
        (f"git annex enableremote {ours.quoted} encryption=none",),
    )


def _not_verified(facts: Facts, ours: Ours) -> Iterator[Finding]:
    if ours.pending is None:
        return
    where = f" ({ours.pending.configuration})" if ours.pending.configuration else ""
    never = ours.verified is None
    yield Finding(
        "not-verified",
        ours.name,
        f"git-annex does not use the remote {ours.name}, because you have not said that its configuration is safe"
        if never
        else f"somebody has changed the configuration of the remote {ours.name}; git-annex goes on with the one that "
        "you "
        "have verified",
        f"If this is where you expect it to lead{where}, say so:",
        (f"git annex verifyremote {ours.quoted} --safe {ours.pending.number}",),
    )


def _cluster_unknown(facts: Facts, ours: Ours) -> Iterator[Finding]:
    if facts.logs.clusters.nodes(ours.uuid):
        return
    if ours.settings is not None and ours.settings.address is None:
        remedy, commands = (
            "Write the nodes down in it (each of them has to be reachable):",
            ("git annex updatecluster",),
        )
    else:
        remedy = "Fetch the gateway's git-annex branch, which names them:"
        commands = ("git fetch --all",)
    yield Finding(
        "cluster-unknown",
        ours.name,
        f"this repository knows no node of the cluster {facts.name_of(ours.uuid)}, so the copies there are not counted",
        remedy,
        commands,
    )


def _node_remotes_missing(facts: Facts, ours: Ours) -> Iterator[Finding]:
    settings = ours.settings
    assert settings is not None
    if settings.address is None or next(each for each in facts.ours if each.uuid == ours.uuid) is not ours:
        # Without a server the nodes are remotes already; of several remotes for one cluster the first speaks for all.
        return
    missing = [
        uuid
        for uuid in sorted(facts.logs.clusters.nodes(ours.uuid))
        if uuid != facts.uuid and not facts.remotes_with(uuid) and facts.logs.trust.get(uuid) != "dead"
    ]
    if not missing:
        return
    names = ", ".join(map(facts.name_of, missing))
    yield Finding(
        "node-remotes-missing",
        ours.name,
        f"there is no remote for {names}, so git-annex cannot verify the copies there: a drop here is refused, for the "
        "cluster itself is no copy",
        "Make one for each node of the cluster:",
        (f"cluster-remote setup {ours.quoted} {shlex.quote(settings.url)}",),
    )


def _costs(facts: Facts, ours: Ours) -> Iterator[Finding]:
    settings = ours.settings
    assert settings is not None
    own = facts.cost(ours.name)
    nodes = facts.logs.clusters.nodes(ours.uuid)
    if settings.address is None:
        costs = [facts.cost(name) for name in facts.config.remotes() if _uuid_of(facts, name) in nodes]
        if costs and own >= min(costs):
            yield Finding(
                "cost",
                ours.name,
                f"the remote {ours.name} costs {own:g} and its cheapest node {min(costs):g}, so git annex sync uploads "
                "to the nodes one by one instead of once to the cluster",
                "Let the cluster cost less than its nodes:",
                (_set_cost(ours, min(_SERVERLESS_COST, min(costs) - 1)),),
            )
        return
    for node in facts.ours:
        behind = node.sameas and node.settings is not None and node.settings.address is not None
        if node.uuid in nodes and behind and facts.cost(node.name) <= own:
            yield Finding(
                "cost",
                node.name,
                f"the remote {node.name} for one node costs {facts.cost(node.name):g}, and the remote {ours.name} "
                "for the "
                f"whole cluster {own:g}: git-annex may store to the node before the cluster",
                "Let the node cost slightly more:",
                (_set_cost(node, own + 1),),
            )


def _set_cost(ours: Ours, cost: float) -> str:
    return f"git config {shlex.quote(f'remote.{ours.name}.annex-cost')} {cost:g}"


def _uuid_of(facts: Facts, remote: str) -> UUID | None:
    try:
        return UUID.parse(facts.config.remote(remote, "annex-uuid") or "")
    except ValueError:
        return None


def _left_over(facts: Facts) -> Iterator[Finding]:
    """What an initremote that was refused or killed leaves: a remote that is none, but has the name."""
    for remote in facts.config.remotes():
        named = ("url", "annex-uuid", "pushurl", "vcs")
        if facts.config.remote(remote, "annex-private") and not any(facts.config.remote(remote, key) for key in named):
            yield Finding(
                "left-over",
                remote,
                f"{remote} is what an initremote that did not succeed has left in git's configuration",
                "Remove it, so that its name is free again:",
                (f"git config --remove-section {shlex.quote(f'remote.{remote}')}",),
            )


# The repository as a gateway, or as one whose remotes are nodes


def _own_clusters(facts: Facts) -> Iterator[Finding]:
    clusters = facts.config.clusters()
    configured: dict[str, dict[str, UUID | None]] = {}
    for remote in facts.config.remotes():
        for name in (facts.config.remote(remote, "annex-cluster-node") or "").lower().split():
            configured.setdefault(name, {})[remote] = _uuid_of(facts, remote)
    for name in sorted(configured.keys() - clusters.keys()):
        yield Finding(
            "no-such-cluster",
            name,
            f"{', '.join(sorted(configured[name]))} shall be a node of the cluster {name!r}, which this repository "
            "does "
            "not have",
            "Make it (or mend the name in remote.REMOTE.annex-cluster-node):",
            (f"git annex initcluster {shlex.quote(name)}", "git annex updatecluster"),
        )
    for name, cluster in clusters.items():
        yield from _own_cluster(facts, name, cluster, configured.get(name, {}))


def _own_cluster(facts: Facts, name: str, cluster: UUID, configured: Mapping[str, UUID | None]) -> Iterator[Finding]:
    listed = facts.logs.clusters.nodes(cluster)
    for remote, uuid in configured.items():
        if uuid is None:
            yield Finding(
                "node-unknown",
                remote,
                f"{remote} shall be a node of the cluster {name}, but git-annex does not know who it is",
                "Let git-annex ask it, and write it down:",
                (f"git fetch {shlex.quote(remote)}", f"git annex info {shlex.quote(remote)} --fast",
                 "git annex updatecluster"),
            )  # fmt: skip
        elif uuid not in listed:
            yield Finding(
                "node-not-listed",
                remote,
                f"{remote} shall be a node of the cluster {name}, but cluster.log does not list it, so nothing is "
                "stored "
                "there",
                "Write it down (each node has to be reachable):",
                ("git annex updatecluster",),
            )
    elsewhere = {
        uuid for gateway, names in facts.logs.proxied.items() if gateway != facts.uuid for uuid in names.values()
    }
    ours = {each.name for each in facts.ours}
    for uuid in sorted(listed - set(configured.values()) - elsewhere):
        others = [name for name in facts.remotes_with(uuid) if name not in ours]
        for remote in others[:1]:
            yield Finding(
                "node-not-configured",
                remote,
                f"cluster.log lists {facts.name_of(uuid)} as a node of the cluster {name}, but the remote {remote} "
                "is not "
                "configured to be one, so nothing is stored there",
                "Make it one (or take it out of the list: git annex updatecluster):",
                (f"git config {shlex.quote(f'remote.{remote}.annex-cluster-node')} {shlex.quote(name)}",
                 "git annex updatecluster"),
            )  # fmt: skip
        if not others:
            yield Finding(
                "node-not-configured",
                str(uuid),
                f"cluster.log lists {facts.name_of(uuid)} as a node of the cluster {name}, but no remote here leads "
                "there",
                "Take it out of the list (or add a remote for it first, and git config "
                "remote.REMOTE.annex-cluster-node "
                f"{name}):",
                ("git annex updatecluster",),
            )


def _not_fetched(facts: Facts) -> Iterator[Finding]:
    for branch in facts.branches:
        if branch.fetched is None and branch.there is not None:
            remote = shlex.quote(branch.remote)
            yield Finding(
                "not-fetched",
                branch.remote,
                f"the git-annex branch of the remote {branch.remote} has never been fetched, so this repository does "
                "not "
                "know what is there, nor its clusters",
                "Fetch it; git-annex merges it by itself:",
                (f"git fetch {remote} +git-annex:refs/remotes/{remote}/git-annex",),
            )


def mistakes_of_servers(facts: Facts, servers: Iterable[Server]) -> Iterator[Finding]:
    """What the answers of the servers show. Pure."""
    by_name = {ours.name: ours for ours in facts.ours}
    for server in servers:
        ours = by_name[server.remote]
        if server.error is not None and any(ours.uuid in nodes for nodes in facts.logs.clusters.members.values()):
            yield Finding(
                "unreachable",
                server.remote,
                f"{facts.name_of(ours.uuid)} cannot be reached by the remote {server.remote}: {server.error}",
                "Bring it back, or mend the way to it. If it is gone for good, say so, and it will be left alone:",
                (f"git annex dead {ours.uuid}",),
            )
        elif server.error is not None:
            yield Finding(
                "unreachable",
                server.remote,
                f"the remote {server.remote} does not work: {server.error}",
                "Bring back what it leads to, or mend the way to it; then this works:",
                (f"cluster-remote ping {ours.quoted}",),
            )
        elif server.version is not None and server.version < _PLUS and ours.is_cluster:
            yield Finding(
                "old-protocol",
                server.remote,
                f"what the remote {server.remote} leads to speaks version {server.version} of the protocol, which "
                "cannot "
                "say on which nodes content is stored",
                "Install git-annex 10.20240731 or newer there; this shows what it speaks then:",
                (f"cluster-remote ping {ours.quoted}",),
            )


def find_notes(facts: Facts) -> Iterator[str]:
    """What is no mistake but worth knowing."""
    for branch in facts.branches:
        if branch.fetched is not None and branch.there not in (None, branch.fetched):
            yield (
                f"the git-annex branch of {branch.remote} has changed since it was fetched: git fetch "
                f"{shlex.quote(branch.remote)}"
            )
    mine = {ours.uuid for ours in facts.ours if not ours.sameas}
    for uuid, parameters in facts.logs.remotes.items():
        if uuid.is_cluster and uuid not in mine and "sameas-uuid" not in parameters:
            yield (
                f"the git-annex branch has a special remote {parameters.get('name', '?')!r} in the place of the "
                "cluster "
                f"{facts.name_of(uuid)}, made with uuid=; nobody should enable it"
            )
