"""The nodes of a cluster as git's configuration and cluster.log name them, and the way to each.

As in git-annex's own gateway a node is a remote with `remote.R.annex-cluster-node`, the name of the cluster or several
names, that cluster.log lists too and that is not dead. A cluster of another repository has the remotes here that
cluster.log lists. Another gateway of the cluster is one whose `remote.R.annex-cluster-gateway` has the
cluster's UUID. (git-annex's tip on clusters; the several names, and that `annex-ignore` changes nothing, as observed
with git-annex 10.20261026.)
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import anyio.to_thread

from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.errors import AnnexError, NotInitialised
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.locationlog import LocationLog
from cluster_remote.annex.repository import Repository
from cluster_remote.cluster.node import Kind, Node
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.cluster.session import ClusterSession, Locations, Recorder
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Session
from cluster_remote.transport.address import Address, BadAddress, Directory, Ssh, parse_address
from cluster_remote.transport.opening import Caller, session_at

__all__ = [
    "Direct",
    "Member",
    "Membership",
    "NoCluster",
    "Proxied",
    "Way",
    "chosen_cluster",
    "cost_of",
    "live_nodes",
    "membership",
    "open_cluster",
    "resolved",
    "way_to",
]

_LOGS = (
    "uuid.log",
    "cluster.log",
    "proxy.log",
    "remote.log",
    "trust.log",
    "preferred-content.log",
    "required-content.log",
)

# git-annex's costs where remote.R.annex-cost does not say otherwise (as observed): what is on this machine, what is
# reached over a network, what encryption adds to either, and a network made for hiding.
_LOCAL, _NETWORK, _ENCRYPTION, _HIDDEN = 100.0, 200.0, 50.0, 1000.0

# Seconds for git-annex to ask remotes for their UUIDs, and until it is made to do so again for one that did not answer.
_RESOLVING, _ASK_AGAIN = 20.0, 60.0
_asked: dict[tuple[Path, str], float] = {}

# Settings of a remote that only git-annex's own ssh connections follow.
_SSH_SETTINGS = ("annex-shell", "annex-ssh-options")


class NoCluster(AnnexError):
    """There is no such cluster in this repository, or nothing that could be its nodes; says what to do."""


@dataclass(frozen=True, slots=True)
class Direct:
    """A git repository that a session of our own leads to."""

    address: Address


@dataclass(frozen=True, slots=True)
class Proxied:
    """Whatever else git-annex can reach: it is asked to, in this very repository, as a proxy for that one."""


Way: TypeAlias = Direct | Proxied


@dataclass(frozen=True, slots=True)
class Member:
    """A node, or another gateway of the cluster; see Node, which this becomes."""

    uuid: UUID
    name: str
    description: str
    cost: float
    way: Way
    gateway: UUID | None = None
    """The other gateway's own UUID."""
    behind: frozenset[UUID] = frozenset()
    """The nodes behind the other gateway."""

    @property
    def kind(self) -> Kind:
        match self.way:
            case _ if self.gateway is not None:
                return "gateway"
            case Direct(Directory()):
                return "local"
            case Direct():
                return "ssh"
            case Proxied():
                return "proxied"


@dataclass(frozen=True)
class Membership:
    """A cluster as one repository sees it, which is a gateway of it or whose user needs none.

    `place` and `own` are this repository's directory and UUID. `choosy` says whether any node has preferred or required
    content set; then uploads are left to git-annex's own gateway, whose rules these are.
    """

    cluster: UUID
    name: str
    place: Directory
    own: UUID
    members: tuple[Member, ...]
    choosy: bool = False
    missing: Mapping[UUID, str] = field(default_factory=dict)
    """The nodes in cluster.log that no remote leads to, unless they are dead, and what people call them."""

    def nodes(self, caller: Caller, bypass: frozenset[UUID] = frozenset()) -> tuple[Node, ...]:
        """The nodes to go to. `bypass` are the gateways that the request has been through; it goes to none of them."""
        return tuple(
            Node(
                uuid=member.uuid,
                name=member.name,
                description=member.description,
                cost=member.cost,
                session=partial(self._session, member, caller, bypass),
                kind=member.kind,
                members=member.behind,
            )
            for member in self.members
            if member.gateway not in bypass
        )

    def _session(self, member: Member, caller: Caller, bypass: frozenset[UUID]) -> Session:
        if member.gateway is None:
            address = member.way.address if isinstance(member.way, Direct) else self.place
            return session_at(address, caller, server=member.uuid)
        if isinstance(member.way, Proxied):
            raise BadAddress(
                f"the url of the remote {member.name} is none that a gateway of the cluster can be asked at"
            )
        # It is not to come back here, and not to go to the gateways that are asked from here.
        gateways = {other.gateway for other in self.members if other.gateway is not None}
        beyond = bypass | {self.own} | gateways - {member.gateway}
        return session_at(member.way.address, caller, server=member.uuid, bypass=beyond)

    def session(
        self,
        caller: Caller,
        *,
        locations: Locations | None,
        record: Recorder | None = None,
        record_uploads: bool = True,
        bypass: frozenset[UUID] = frozenset(),
        reachability: Reachability | None = None,
    ) -> ClusterSession:
        """A new session with the cluster; nothing is opened yet. See ClusterSession. Raises NoCluster.

        `caller` is this repository, and its timeout what each node gets. Where clients wait at the other end, that has
        to be clearly less than what they grant, or they give up together with the node that keeps them waiting.
        """
        nodes = self.nodes(caller, bypass)
        if not nodes:
            raise NoCluster(f"cluster {self.name}: no nodes are left but those behind gateways that were asked before")
        uploader = session_at(self.place, caller, server=self.cluster, bypass=bypass) if self.choosy else None
        return ClusterSession(
            self.cluster,
            nodes,
            locations,
            name=f"cluster {self.name}",
            record=record,
            record_uploads=record_uploads,
            # A gateway that was asked before this one answers for the cluster as a whole.
            missing={} if bypass else self.missing,
            uploader=uploader,
            timeout=caller.timeout,
            reachability=reachability,
        )


def chosen_cluster(config: GitConfig, wanted: str | None) -> tuple[UUID, str]:
    """The cluster of this name or UUID, or the only one there is, and its name. Raises NoCluster."""
    clusters = config.clusters()
    names = ", ".join(f"{name} ({uuid})" for name, uuid in sorted(clusters.items()))
    if wanted is None:
        if len(set(clusters.values())) == 1:
            return next((uuid, name) for name, uuid in clusters.items())
        if clusters:
            raise NoCluster(f"there are several clusters in this repository, say which: {names}")
        raise NoCluster(
            "there is no cluster in this repository: make one with git annex initcluster NAME, name its nodes with "
            "git config remote.NODE.annex-cluster-node NAME, and run git annex updatecluster"
        )
    for name, uuid in clusters.items():
        # git keeps no capitals in such a name.
        if wanted.lower() in (name, uuid.text):
            return uuid, name
    known = f"there is {names}" if names else "there is none"
    raise NoCluster(
        f"this repository has no cluster {wanted!r} of its own ({known}): make one with git annex initcluster, or, "
        "where another repository is its gateway, join it with git annex extendcluster GATEWAY NAME"
    )


def _cluster(config: GitConfig, logs: BranchLogs, wanted: str | None) -> tuple[UUID, str]:
    """Return the chosen cluster and its name; by its UUID it may also be one that only cluster.log knows."""
    uuid = _uuid(wanted)
    if uuid is None or uuid in config.clusters().values() or not logs.clusters.nodes(uuid):
        return chosen_cluster(config, wanted)
    return uuid, logs.descriptions.get(uuid, uuid.text)


def live_nodes(logs: BranchLogs, cluster: UUID) -> frozenset[UUID]:
    """Return the nodes that cluster.log lists, without those that git-annex was told are dead. Pure."""
    return frozenset(uuid for uuid in logs.clusters.nodes(cluster) if logs.trust.get(uuid) != "dead")


def _named_clusters(config: GitConfig, remote: str) -> set[str]:
    return set((config.remote(remote, "annex-cluster-node") or "").lower().split())


def resolved(config: GitConfig, repository: Repository) -> GitConfig:
    """Return the configuration with the UUIDs of nodes that git-annex has not asked for yet.

    git-annex asks each remote for its UUID when it first needs it, and caches it. A node that it cannot reach now keeps
    having none; so it is asked at most once a minute.
    """
    own = set(config.clusters())
    unknown = [
        remote
        for remote in config.remotes()
        if own & _named_clusters(config, remote)
        and not config.remote(remote, "annex-uuid")
        and config.remote(remote, "url")
    ]
    now = time.monotonic()
    unknown = [each for each in unknown if now - _asked.get((repository.git_dir, each), -math.inf) > _ASK_AGAIN]
    if not unknown:
        return config
    _asked.update({(repository.git_dir, each): now for each in unknown})
    argv = ("git", "annex", "info", "--fast", "--json", unknown[0])
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        # It looks at all remotes, whichever is named. What it could not find out is still missing afterwards.
        subprocess.run(
            argv,
            cwd=repository.cwd,
            env=repository.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_RESOLVING,
            check=False,
        )
    return repository.config()


def membership(config: GitConfig, logs: BranchLogs, place: Path, wanted: str | None = None) -> Membership:
    """The cluster of this name or UUID (None: the only one there is). Pure.

    `place` is this repository's directory: its work tree, or the git directory where it has none. Raises NoCluster,
    NotInitialised.
    """
    cluster, name = _cluster(config, logs, wanted)
    own = _uuid(config.get("annex.uuid"))
    if own is None:
        raise NotInitialised(f"{place} is not a repository of git-annex: run git annex init in it")
    names = {each for each, uuid in config.clusters().items() if uuid == cluster}
    listed = live_nodes(logs, cluster)
    nodes: list[Member] = []
    missing: list[str] = []
    for remote in config.remotes():
        uuid = _uuid(config.remote(remote, "annex-uuid"))
        if names:
            if not names & _named_clusters(config, remote) or logs.trust.get(uuid or own) == "dead":
                continue
            if uuid is None or uuid not in listed:
                missing.append(remote)
                continue
        elif uuid is None or uuid not in listed:
            continue
        if uuid not in {node.uuid for node in nodes}:
            way = way_to(config, remote, place, special=_is_special(config, remote, logs))
            cost = cost_of(config, remote, way, logs)
            nodes.append(Member(uuid, remote, logs.descriptions.get(uuid, ""), cost, way))
    gateways = list(_gateways(config, logs, place, cluster, {node.uuid for node in nodes}))
    if not nodes and not gateways:
        raise NoCluster(_no_nodes(name, missing))
    choosy = logs.has_preferred_content(node.uuid for node in nodes)
    reached = frozenset[UUID]().union({node.uuid for node in nodes}, *(gateway.behind for gateway in gateways))
    unknown = {uuid: logs.descriptions.get(uuid, uuid.text) for uuid in sorted(listed - reached)}
    return Membership(cluster, name, Directory(str(place)), own, (*nodes, *gateways), choosy, unknown)


def _no_nodes(name: str, missing: list[str]) -> str:
    if missing:
        return (
            f"cluster {name}: cluster.log does not list {', '.join(missing)} as its nodes yet: run git annex "
            "updatecluster (each of them must be reachable then)"
        )
    return (
        f"cluster {name} has no nodes here: name some with git config remote.NODE.annex-cluster-node {name}, and run "
        "git annex updatecluster"
    )


def _gateways(config: GitConfig, logs: BranchLogs, place: Path, cluster: UUID, near: set[UUID]) -> Iterator[Member]:
    """The other gateways of a cluster, with the nodes that are not near."""
    for remote in config.remotes():
        uuid = _uuid(config.remote(remote, "annex-uuid"))
        of = (config.remote(remote, "annex-cluster-gateway") or "").lower().split()
        if uuid is None or cluster.text not in of:
            continue
        behind = live_nodes(logs, cluster) - near
        if uuid in logs.proxied:
            behind &= frozenset(logs.proxied[uuid].values())
        way = _way_to_gateway(config, remote, place)
        name = f"{remote} (gateway)" if uuid in near else remote
        description = logs.descriptions.get(uuid, "")
        yield Member(cluster, name, description, cost_of(config, remote, way, logs), way, gateway=uuid, behind=behind)


def way_to(config: GitConfig, remote: str, place: Path, *, special: bool = False) -> Way:
    """How a node is reached. A relative path is relative to `place`. Pure."""
    url = config.remote(remote, "url")
    # What git-annex has enabled by a configuration of the git-annex branch is git-annex's to use, or to refuse.
    unverified = config.remote(remote, "annex-verified") not in (None, "verified")
    if special or unverified or not url:
        return Proxied()
    url = _rewritten(config, url)
    before, colon, _ = url.partition(":")
    if not colon or "/" in before:
        # As git tells a path from a host: it has no colon before its first slash.
        return Direct(Directory(str(place / url)))
    try:
        address = parse_address(url)
    except BadAddress:
        return Proxied()
    match address:
        case Directory():
            return Direct(address)
        case Ssh() if not any(config.remote(remote, setting) for setting in _SSH_SETTINGS):
            return Direct(address)
        case _:
            return Proxied()


def _way_to_gateway(config: GitConfig, remote: str, place: Path) -> Way:
    """As with a node, save that git-annex cannot be asked to be the proxy: it would come back here."""
    way = way_to(config, remote, place)
    if isinstance(way, Proxied):
        try:
            return Direct(parse_address(_rewritten(config, config.remote(remote, "url") or "")))
        except BadAddress:
            return way
    return way


def _rewritten(config: GitConfig, url: str) -> str:
    """What git makes of a url by `url.BASE.insteadOf`: the longest beginning that fits is replaced."""
    longest, replacement = "", ""
    for base in config.subsections("url"):
        for beginning in config.all(f"url.{base}.insteadOf"):
            if len(beginning) > len(longest) and url.startswith(beginning):
                longest, replacement = beginning, base
    return replacement + url.removeprefix(longest) if longest else url


def cost_of(config: GitConfig, remote: str, way: Way, logs: BranchLogs) -> float:
    """`remote.R.annex-cost`, or what git-annex takes where that is not set. Pure.

    What an external special remote says of itself is not asked for.
    """
    try:
        return float(config.remote(remote, "annex-cost") or "")
    except ValueError:
        pass
    match way:
        case Direct(Directory()):
            return _LOCAL
        case Direct():
            return _NETWORK
    settings = _special_settings(config, remote, logs)
    kind = settings.get("type", "git")
    if kind == "git" and (config.remote(remote, "url") or "").startswith(("p2p-annex::", "tor-annex::")):
        return _HIDDEN
    near = kind == "directory" or (kind == "rsync" and ":" not in settings.get("rsyncurl", ":"))
    encrypted = settings.get("encryption", "none") != "none"
    return (_LOCAL if near else _NETWORK) + (_ENCRYPTION if encrypted else 0.0)


def _is_special(config: GitConfig, remote: str, logs: BranchLogs) -> bool:
    # A special remote of the type git is a git repository with its url in remote.log.
    return _special_settings(config, remote, logs).get("type", "git") != "git"


def _special_settings(config: GitConfig, remote: str, logs: BranchLogs) -> dict[str, str]:
    """What remote.log has of a remote; nothing of one that is just a git remote."""
    for setting in ("annex-config-uuid", "annex-uuid"):
        uuid = _uuid(config.remote(remote, setting))
        if uuid is not None and uuid in logs.remotes:
            return dict(logs.remotes[uuid])
    return {}


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID.parse(text or "")
    except ValueError:
        return None


async def open_cluster(
    repository: Repository,
    wanted: str | None,
    caller: Caller,
    *,
    locations: Locations | None = None,
    record: Recorder | None = None,
    bypass: frozenset[UUID] = frozenset(),
    reachability: Reachability | None = None,
) -> ClusterSession:
    """A session with a cluster of this repository, by name or UUID (None: the only one there is).

    `locations` stays the caller's; without it the session has its own, and closes it in the end. Whoever opens many
    sessions reads the `membership` once. Raises NoCluster, NotInitialised, CommandFailed, BranchUnreadable.
    """
    logs = await BranchLogs.read(repository, _LOGS)
    config = await anyio.to_thread.run_sync(resolved, await repository.current_config(), repository)
    found = membership(config, logs, repository.place, wanted)
    if locations is not None:
        return found.session(caller, locations=locations, record=record, bypass=bypass, reachability=reachability)
    log = LocationLog(repository)
    session = found.session(caller, locations=log, record=record, bypass=bypass, reachability=reachability)
    session.owns(log)
    return session
