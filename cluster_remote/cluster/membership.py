"""The nodes of a cluster according to git's configuration and cluster.log, and how to reach each.

A node is a repository that is in cluster.log and is a remote here. Others can write to cluster.log, so where this
repository's configuration names nodes of the cluster (`remote.R.annex-cluster-node`), only these are used; where it
names none, as in a clone, all are. The user's settings for git-annex apply: dead repositories are not nodes,
`annex-ignore` excludes a remote, `annex-readonly` makes a node read-only; of several remotes for one repository, the
cheapest that answers is used. Another gateway of the cluster is a remote whose `remote.R.annex-cluster-gateway` has the
cluster's UUID. (From git-annex's tip on clusters; git-annex's own gateway always requires
`remote.R.annex-cluster-node`, and ignores annex-ignore and annex-readonly, as observed with git-annex 10.20261026.)
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import anyio

from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.credentials import read_p2p_token
from cluster_remote.annex.errors import AnnexError, NotInitialised
from cluster_remote.annex.gitconfig import GitConfig, is_path
from cluster_remote.annex.repository import Repository
from cluster_remote.cluster.commands import Commands, WithCommands
from cluster_remote.cluster.node import NETWORK_COST, Kind, Node
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.cluster.session import ClusterSession, Locations, Recorder
from cluster_remote.cluster.throttling import Rates, Throttled
from cluster_remote.cluster.wrapping import Failover, LocalReads, Serialised, uses_pidlock
from cluster_remote.p2p.errors import Refused
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Session
from cluster_remote.p2p.text import as_command
from cluster_remote.transport.address import Address, BadAddress, Directory, Http, P2pAnnex, Ssh, Tor, parse_address
from cluster_remote.transport.opening import Caller, session_at

__all__ = [
    "Direct",
    "Member",
    "Membership",
    "NoCluster",
    "Proxied",
    "Remote",
    "Way",
    "chosen_cluster",
    "cost_of",
    "live_nodes",
    "membership",
    "p2p_token",
    "p2p_tokens",
    "special_settings",
    "way_to",
]

# git-annex's other default costs (as observed): for this machine, the surcharge for encryption, and for an anonymity
# network.
_LOCAL, _ENCRYPTION, _HIDDEN = 100.0, 50.0, 1000.0

# A rate as git-annex parses it: 500KiB, 1 MB, 10Mbit.
_RATE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
# The name under which git-annex's gateway code sees the cluster.
_DELEGATED = "seen-by-cluster-remote"
_DECIMAL, _BINARY = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}, {"ki": 1, "mi": 2, "gi": 3, "ti": 4, "pi": 5}


class NoCluster(AnnexError):
    """No such cluster in this repository, or the cluster has no nodes here; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Direct:
    """A git repository that our own session can reach.

    `ssh_options` are the user's for this remote. `token` is git-annex's for a remote on a P2P network or behind Tor.
    """

    address: Address
    ssh_options: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Proxied:
    """Anything else that git-annex can reach: this repository's git-annex acts as a proxy for it."""


Way: TypeAlias = Direct | Proxied


@dataclass(frozen=True, slots=True)
class Remote:
    """One remote that leads to a node, and its settings.

    `start` and `stop` are shell commands to run around its use.
    """

    name: str
    cost: float
    way: Way
    rates: Rates = field(default_factory=Rates)
    start: str | None = None
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A node, or another gateway of the cluster; becomes a Node.

    `remotes` lead to it, cheapest first. `writable` is False if annex-readonly is set.
    """

    uuid: UUID
    description: str
    remotes: tuple[Remote, ...]
    writable: bool = True
    gateway: UUID | None = None
    """The other gateway's own UUID."""
    behind: frozenset[UUID] = frozenset()
    """The nodes behind the other gateway."""

    @property
    def name(self) -> str:
        return self.remotes[0].name

    @property
    def cost(self) -> float:
        return self.remotes[0].cost

    @property
    def way(self) -> Way:
        return self.remotes[0].way

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
    """A cluster as seen by one repository, which is a gateway of it or needs none.

    `directory` and `own` are this repository's directory and UUID. `has_preferred_content` says whether any node has
    preferred or required content; then git-annex's own gateway does the uploads, since these are its rules.
    """

    cluster: UUID
    name: str
    directory: Directory
    own: UUID
    members: tuple[Member, ...]
    has_preferred_content: bool = False
    hidden: Mapping[str, str] = field(default_factory=dict)
    """git settings that hide all nodes and gateways from git-annex's own gateway code."""
    is_gateway: bool = True
    """Whether git-annex, too, treats this repository as a gateway of the cluster (proxy.log)."""
    missing: Mapping[UUID, str] = field(default_factory=dict)
    """The nodes in cluster.log without a remote here, unless dead, with their descriptions."""

    def nodes(self, caller: Caller, bypass: frozenset[UUID] = frozenset()) -> tuple[Node, ...]:
        """Return the nodes to use. The request has passed through the gateways in `bypass`, so it must avoid them."""
        return tuple(
            Node(
                uuid=member.uuid,
                name=member.name,
                description=member.description,
                cost=member.cost,
                session=partial(self._session, member, caller, bypass),
                kind=member.kind,
                members=member.behind,
                writable=member.writable,
                location=str(member.way.address) if isinstance(member.way, Direct) else "",
            )
            for member in self.members
            if member.gateway not in bypass
        )

    def _session(self, member: Member, caller: Caller, bypass: frozenset[UUID]) -> Session:
        if member.gateway is None:
            sessions = [partial(self._through, member.uuid, remote, caller) for remote in member.remotes]
            return sessions[0]() if len(sessions) == 1 else Failover(sessions)
        if isinstance(member.way, Proxied):
            raise BadAddress(f"no gateway can be reached through the url of the remote {member.name}")
        # The gateway must not forward the request back here, nor to gateways that are asked from here.
        gateways = {other.gateway for other in self.members if other.gateway is not None}
        avoid = bypass | {self.own} | gateways - {member.gateway}
        caller = replace(caller, ssh_options=member.way.ssh_options)
        return session_at(member.way.address, caller, server=member.uuid, token=member.way.token, bypass=avoid)

    def _through(self, uuid: UUID, remote: Remote, caller: Caller) -> Session:
        """Return a session with a node through one of its remotes, subject to that remote's settings."""
        if isinstance(remote.way, Direct):
            caller = replace(caller, ssh_options=remote.way.ssh_options)
            session = session_at(remote.way.address, caller, server=uuid, token=remote.way.token)
            if isinstance(remote.way.address, Directory):
                directory = remote.way.address.path
                locked = uses_pidlock(Path(directory))
                session = Serialised(session, _request_lock(uuid)) if locked else LocalReads(session, directory)
        else:
            session = session_at(self.directory, caller, server=uuid)
        if remote.rates != Rates():
            session = Throttled(session, remote.rates)
        if (remote.start or remote.stop) and caller.repository is not None:
            session = WithCommands(session, _commands(caller.repository, uuid, remote))
        return session

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
        """Return a new session with the cluster, without connecting. See ClusterSession. Raises NoCluster.

        `caller` is this repository, and its timeout is for each node. Behind a gateway it must be clearly less than
        that of the clients, or they time out together with a slow node.
        """
        nodes = self.nodes(caller, bypass)
        if not nodes:
            raise NoCluster(
                f"cluster {self.name}: all its nodes are behind gateways that the request has already passed"
            )
        return ClusterSession(
            self.cluster,
            nodes,
            locations,
            name=f"cluster {self.name}",
            record=record,
            record_uploads=record_uploads,
            # The gateway that the request came through answers for the cluster as a whole.
            missing={} if bypass else self.missing,
            uploader=partial(self._uploader, caller, bypass) if self.has_preferred_content else None,
            timeout=caller.timeout,
            reachability=reachability,
        )

    def _uploader(self, caller: Caller, bypass: frozenset[UUID], reachable: Mapping[str, str]) -> Session:
        """Return a session with git-annex's own gateway code, run here, which sees only the `reachable` nodes.

        It goes by git's configuration, in which a name of ours for the cluster replaces the user's. Raises Refused.
        """
        if not self.is_gateway:
            nodes = " ".join(f"--node {shlex.quote(member.name)}" for member in self.members if member.gateway is None)
            raise Refused(
                f"cluster {self.name}: nodes have preferred content, which git-annex only respects if the cluster is "
                f"set up here: cluster-remote setup NAME --cluster {self.cluster} {nodes}"
            )
        settings = dict(self.hidden)
        for member in self.members:
            if member.name not in reachable:
                continue
            used = reachable[member.name]
            by = next((each for each in member.remotes if _session_name(each) == used), member.remotes[0])
            if member.gateway is None:
                settings[f"remote.{by.name}.annex-cluster-node"] = _DELEGATED
            else:
                settings[f"remote.{by.name}.annex-cluster-gateway"] = self.cluster.text
        settings[f"annex.cluster.{_DELEGATED}"] = self.cluster.text
        return session_at(self.directory, replace(caller, settings=settings), server=self.cluster, bypass=bypass)


def chosen_cluster(config: GitConfig, wanted: str | None, logs: BranchLogs | None = None) -> tuple[UUID, str]:
    """Return the cluster with this name or UUID, or the only one, and its name. Raises NoCluster.

    A UUID may also be one known to cluster.log in `logs`, as in a clone where its nodes have been enabled.
    """
    clusters = config.clusters()
    names = ", ".join(f"{name} ({uuid})" for name, uuid in sorted(clusters.items()))
    if wanted is None:
        if len(set(clusters.values())) == 1:
            return next((uuid, name) for name, uuid in clusters.items())
        if clusters:
            raise NoCluster(f"there are several clusters in this repository; choose one: {names}")
        raise NoCluster(
            "there is no cluster in this repository: create one with git annex initcluster NAME, set its nodes with "
            "git config remote.NODE.annex-cluster-node NAME, and run git annex updatecluster"
        )
    for name, uuid in clusters.items():
        # git lower-cases such names.
        if wanted.lower() in (name, uuid.text):
            return uuid, name
    by_uuid = UUID.if_valid(wanted)
    if by_uuid is not None and logs is not None and logs.clusters.nodes(by_uuid):
        return by_uuid, logs.descriptions.get(by_uuid, "").removeprefix("cluster ") or by_uuid.text
    known = f"it has {names}" if names else "it has none"
    raise NoCluster(
        f"this repository has no cluster {wanted!r} of its own ({known}): create one with git annex initcluster, or, "
        "if another repository is its gateway, join it with git annex extendcluster GATEWAY NAME"
    )


def live_nodes(logs: BranchLogs, cluster: UUID) -> frozenset[UUID]:
    """Return the nodes in cluster.log that are not dead. Pure."""
    return frozenset(uuid for uuid in logs.clusters.nodes(cluster) if logs.trust.get(uuid) != "dead")


def membership(
    config: GitConfig,
    logs: BranchLogs,
    directory: Path,
    wanted: str | None = None,
    tokens: Mapping[str, str] = MappingProxyType({}),
) -> Membership:
    """Return the cluster with this name or UUID (None: the only one). Pure.

    `directory` is this repository's directory: its work tree, or its git directory if it has none; `tokens` are those
    of `p2p_tokens`. Raises NoCluster, NotInitialised.
    """
    cluster, name = chosen_cluster(config, wanted, logs)
    own = UUID.if_valid(config.get("annex.uuid"))
    if own is None:
        raise NotInitialised(f"{directory} is not a git-annex repository: run git annex init there")
    listed = live_nodes(logs, cluster)
    named = config.nodes_of(cluster)
    configured = listed.intersection(config.remote_uuid(remote) for remote in named)
    nodes: dict[UUID, Member] = {}
    missing = [remote for remote in named if config.remote_uuid(remote) not in logs.clusters.nodes(cluster)]
    for remote in config.remotes():
        uuid = config.remote_uuid(remote)
        if uuid is None or uuid not in (configured or listed) or not _is_direct(config, remote, logs):
            continue
        if config.is_unverified(remote) and remote not in named:
            # It came by the git-annex branch, perhaps with the UUID of a node and a low cost.
            continue
        found = _remote(config, remote, directory, logs, tokens)
        known = nodes.get(uuid)
        remotes = sorted([*(known.remotes if known else ()), found], key=lambda each: each.cost)
        writable = not config.boolean(f"remote.{remote}.annex-readonly") and (known is None or known.writable)
        nodes[uuid] = Member(uuid, logs.descriptions.get(uuid, ""), tuple(remotes), writable)
    gateways = list(_gateways(config, logs, directory, cluster, set(nodes), tokens))
    if not nodes and not gateways:
        raise NoCluster(_no_nodes(name, missing))
    has_preferred_content = logs.has_preferred_content(nodes)
    reached = frozenset(nodes).union(*(gateway.behind for gateway in gateways))
    members = (*nodes.values(), *gateways)
    unknown = {uuid: logs.descriptions.get(uuid, uuid.text) for uuid in sorted(listed - reached)}
    hidden = {
        f"remote.{remote}.{setting}": ""
        for remote in config.remotes()
        for setting in ("annex-cluster-node", "annex-cluster-gateway")
        if config.remote(remote, setting)
    }
    is_gateway = cluster in logs.proxied.get(own, {}).values()
    return Membership(
        cluster, name, Directory(str(directory)), own, members, has_preferred_content, hidden, is_gateway, unknown
    )


def _is_direct(config: GitConfig, remote: str, logs: BranchLogs) -> bool:
    """Return whether a remote leads directly to its repository, rather than through a cluster or not at all."""
    if config.boolean(f"remote.{remote}.annex-ignore") or config.remote(remote, "annex-externaltype") == "cluster":
        return False
    return bool(config.remote(remote, "url") or config.remote(remote, "annexUrl")) or _is_special(config, remote, logs)


def _remote(config: GitConfig, remote: str, directory: Path, logs: BranchLogs, tokens: Mapping[str, str]) -> Remote:
    way = _with_token(way_to(config, remote, directory, special=_is_special(config, remote, logs)), tokens.get(remote))
    if isinstance(way, Direct) and way.token is None and isinstance(way.address, P2pAnnex | Tor):
        # git-annex may know more, or says what it lacks.
        way = Proxied()

    def rate(direction: str) -> float | None:
        limits = (config.remote(remote, f"annex-bwlimit{direction}"), config.remote(remote, "annex-bwlimit"))
        return next((found for limit in limits if (found := _bytes_a_second(limit))), None)

    return Remote(
        remote,
        cost_of(config, remote, way, logs),
        way,
        # git-annex itself throttles what it reaches for us.
        Rates(rate("-upload"), rate("-download")) if isinstance(way, Direct) else Rates(),
        config.remote(remote, "annex-start-command"),
        config.remote(remote, "annex-stop-command"),
    )


def _bytes_a_second(text: str | None) -> float | None:
    """Parse a rate such as 500KiB, 1MB or 10Mbit, as git-annex does; None for anything else."""
    parts = _RATE.fullmatch(text or "")
    if parts is None:
        return None
    unit = parts[2].lower()
    number = float(parts[1])
    if unit.endswith("bit"):
        power = _DECIMAL.get(unit.removesuffix("bit"))
        return None if power is None else number * 1000**power / 8 or None
    unit = unit.removesuffix("b")
    if unit in _BINARY:
        return number * 1024 ** _BINARY[unit] or None
    return number * 1000 ** _DECIMAL[unit] or None if unit in _DECIMAL else None


@cache
def _request_lock(uuid: UUID) -> anyio.Lock:
    """Return the lock for requests to a repository with annex.pidlock, shared by this process."""
    return anyio.Lock()


@cache
def _commands(repository: Repository, uuid: UUID, remote: Remote) -> Commands:
    """Return the commands to run around the use of a remote, shared by all sessions of this process."""
    return Commands(repository, uuid, remote.start, remote.stop)


def _no_nodes(name: str, missing: list[str]) -> str:
    if missing:
        return (
            f"cluster {name}: cluster.log does not list {', '.join(missing)} as its nodes yet: run git annex "
            "updatecluster (each of them must be reachable)"
        )
    configure = as_command("git config remote.NODE.annex-cluster-node", name)
    return f"cluster {name} has no nodes here: add some with {configure}, and run git annex updatecluster"


def _gateways(
    config: GitConfig,
    logs: BranchLogs,
    directory: Path,
    cluster: UUID,
    direct: set[UUID],
    tokens: Mapping[str, str],
) -> Iterator[Member]:
    """Yield the other gateways of a cluster, with the nodes that are only reachable through them."""
    for remote in config.remotes():
        uuid = config.remote_uuid(remote)
        clusters = (config.remote(remote, "annex-cluster-gateway") or "").lower().split()
        if uuid is None or cluster.text not in clusters:
            continue
        behind = live_nodes(logs, cluster) - direct
        if uuid in logs.proxied:
            behind &= frozenset(logs.proxied[uuid].values())
        way = _with_token(_way_to_gateway(config, remote, directory), tokens.get(remote))
        name = f"{remote} (gateway)" if uuid in direct else remote
        description = logs.descriptions.get(uuid, "")
        found = Remote(name, cost_of(config, remote, way, logs), way)
        yield Member(cluster, description, (found,), gateway=uuid, behind=behind)


def p2p_tokens(repository: Repository, config: GitConfig) -> dict[str, str]:
    """Return the tokens that git-annex has for remotes on P2P networks and behind Tor, by remote."""
    tokens = {
        remote: p2p_token(repository, way_to(config, remote, repository.directory)) for remote in config.remotes()
    }
    return {remote: token for remote, token in tokens.items() if token is not None}


def p2p_token(repository: Repository, way: Way) -> str | None:
    """Return the token that git-annex has for what a way leads to on a P2P network or behind Tor."""
    match way:
        case Direct(P2pAnnex(net=net, path=path)):
            return read_p2p_token(repository, f"{net}:{path}")
        case Direct(Tor(host=host)):
            return read_p2p_token(repository, host)
        case _:
            return None


def _with_token(way: Way, token: str | None) -> Way:
    return replace(way, token=token) if isinstance(way, Direct) else way


def way_to(config: GitConfig, remote: str, directory: Path, *, special: bool = False) -> Way:
    """Return where a remote's annexUrl, or else its url, leads. Relative paths start at `directory`. Pure.

    git-annex reaches what is on a P2P network or behind Tor if there is no token for it; see `membership`.
    """
    url = config.url_of(remote)
    # Only git-annex may decide about a remote that it enabled from the git-annex branch.
    if special or config.is_unverified(remote) or not url:
        return Proxied()
    if is_path(url):
        return Direct(Directory(str(directory / url)))
    try:
        address = parse_address(url)
    except BadAddress:
        return Proxied()
    match address:
        case Directory() | Http() | Tor():
            return Direct(address)
        case P2pAnnex(net=net):
            # To git-annex, `?node=UUID` is a part of the address, and its token names the node.
            return Direct(P2pAnnex(net, str(address).removeprefix(f"p2p-annex::{net}:")))
        case Ssh() if not config.remote(remote, "annex-shell"):
            return Direct(address, config.ssh_options(remote))
        case _:
            return Proxied()


def _way_to_gateway(config: GitConfig, remote: str, directory: Path) -> Way:
    """Return how to reach a gateway: as for a node, but never through git-annex's proxy, which would lead back here."""
    way = way_to(config, remote, directory)
    if isinstance(way, Proxied):
        try:
            return Direct(parse_address(config.rewritten(config.remote(remote, "url") or "")))
        except BadAddress:
            return way
    return way


def cost_of(config: GitConfig, remote: str, way: Way, logs: BranchLogs) -> float:
    """Return `remote.R.annex-cost`, or git-annex's default. Pure.

    Does not ask external special remotes for their own cost.
    """
    try:
        return float(config.remote(remote, "annex-cost") or "")
    except ValueError:
        pass
    match way:
        case Direct(Directory()):
            return _LOCAL
        case Direct(P2pAnnex() | Tor()):
            return _HIDDEN
        case Direct():
            return NETWORK_COST
    settings = special_settings(config, remote, logs)
    kind = settings.get("type", "git")
    # An address that only git-annex understands.
    if kind == "git" and config.url_of(remote).startswith(("p2p-annex::", "tor-annex::")):
        return _HIDDEN
    near = kind == "directory" or (kind == "rsync" and ":" not in settings.get("rsyncurl", ":"))
    encrypted = settings.get("encryption", "none") != "none"
    return (_LOCAL if near else NETWORK_COST) + (_ENCRYPTION if encrypted else 0.0)


def _session_name(remote: Remote) -> str:
    """Return the name of the session that a remote leads to."""
    return str(remote.way.address) if isinstance(remote.way, Direct) else ""


def _is_special(config: GitConfig, remote: str, logs: BranchLogs) -> bool:
    # A special remote of type git is a git repository with its url in remote.log.
    return special_settings(config, remote, logs).get("type", "git") != "git"


def special_settings(config: GitConfig, remote: str, logs: BranchLogs) -> dict[str, str]:
    """Return what remote.log says about a remote; nothing for a plain git remote.

    Others can write to remote.log, also about the UUID of a repository that is none of its remotes.
    """
    if _is_git_repository(config, remote):
        return {}
    for setting in ("annex-config-uuid", "annex-uuid"):
        uuid = UUID.if_valid(config.remote(remote, setting))
        if uuid is not None and uuid in logs.remotes:
            return dict(logs.remotes[uuid])
    return {}


def _is_git_repository(config: GitConfig, remote: str) -> bool:
    """Return whether git's configuration shows that a remote is a git repository: its url leads to one."""
    url = config.url_of(remote)
    # A special remote of type git-lfs has a url too.
    if not url or config.boolean(f"remote.{remote}.annex-git-lfs"):
        return False
    try:
        return is_path(url) or parse_address(url) is not None
    except BadAddress:
        return False
