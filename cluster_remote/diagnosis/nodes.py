"""Who belongs to a cluster remote, and the way to each of them: the gateway, and every node by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster_remote.annex.locationlog import LocationLog
from cluster_remote.cluster.membership import Direct, Membership, membership
from cluster_remote.cluster.node import Node
from cluster_remote.p2p.key import UUID
from cluster_remote.remote.identity import candidates, wanted_server
from cluster_remote.transport.address import Directory, at_node
from cluster_remote.transport.opening import session_at

if TYPE_CHECKING:
    from cluster_remote.annex.branchlog import BranchLogs, Trust
    from cluster_remote.annex.gitconfig import GitConfig
    from cluster_remote.annex.repository import Repository
    from cluster_remote.p2p.session import Session
    from cluster_remote.remote.settings import Settings
    from cluster_remote.transport.address import Address
    from cluster_remote.transport.opening import Caller

__all__ = ["Gateway", "Unusable", "View", "at_address", "costs_of", "of_remote"]

# git-annex's own cost of a repository on the network, for a node that is no remote here.
_COST = 200.0


@dataclass(frozen=True)
class Gateway:
    """What stands before the nodes. `session` makes a new session with whatever answers at the address."""

    address: Address
    session: Callable[[], Session] = field(repr=False, compare=False)

    @property
    def directory(self) -> Path | None:
        """Where it lies on this machine, if it does."""
        return Path(self.address.path) if isinstance(self.address, Directory) else None


@dataclass(frozen=True)
class View:
    """A cluster, or the single repository that a remote may be, as it is seen from this repository.

    `label` is what was given on the command line; `gateway` is None where the nodes are remotes of this repository;
    `repository` is None outside of one of git-annex; `settings` is None for a bare address. `session` makes a new
    session with the cluster as a whole.
    """

    label: str
    repository: Repository | None
    config: GitConfig
    logs: BranchLogs
    settings: Settings | None
    uuid: UUID
    gateway: Gateway | None
    nodes: tuple[Node, ...]
    timeout: float
    session: Callable[[], Session] = field(repr=False, compare=False)

    @property
    def uuids(self) -> frozenset[UUID]:
        """The nodes' UUIDs."""
        return frozenset(node.uuid for node in self.nodes)

    def trust(self, uuid: UUID) -> Trust:
        """How far the repository is trusted to keep what it has."""
        return self.logs.trust.get(uuid, "semitrusted")

    @property
    def living(self) -> tuple[Node, ...]:
        """The nodes that nobody has declared dead."""
        return tuple(node for node in self.nodes if self.trust(node.uuid) != "dead")

    @property
    def legible(self) -> bool:
        """Whether the nodes hold contents under the keys that this repository knows them by."""
        return self.settings is None or (self.settings.encryption == "none" and not self.settings.chunked)

    def wants_all(self, node: Node) -> bool:
        """Whether a node takes whatever it is offered: it has no preferred or required content set."""
        return not self.logs.has_preferred_content([node.uuid])


@dataclass(frozen=True)
class Unusable:
    """A cluster remote that cannot even be looked at, and why."""

    label: str
    uuid: UUID
    description: str
    reason: str


def of_remote(
    label: str,
    settings: Settings,
    repository: Repository,
    config: GitConfig,
    logs: BranchLogs,
    caller: Caller,
    token: str | None,
) -> View:
    """A remote of this repository. Raises BadSettings, BadAddress; without a server NoCluster."""
    server = wanted_server(settings, logs, config.clusters())
    if settings.address is None:
        return _serverless(label, settings, repository, config, logs, caller)
    address = settings.address

    def session() -> Session:
        at = address if server is None or server.is_cluster else at_node(address, server)
        return session_at(at, caller, server=server, token=token)

    nodes: tuple[Node, ...] = ()
    if settings.tracking == "nodes" and settings.uuid.is_cluster:
        nodes = _nodes(settings.uuid, address, config, logs, caller, token)
    else:
        # One copy, however many repositories there are behind it.
        description = logs.descriptions.get(settings.uuid, "")
        nodes = (Node(settings.uuid, settings.name, description, settings.cost, session, "proxied"),)
    gateway = _gateway(address, caller, token)
    uuid = settings.uuid
    return View(label, repository, config, logs, settings, uuid, gateway, nodes, caller.timeout, session)


async def at_address(
    address: Address,
    repository: Repository | None,
    config: GitConfig,
    logs: BranchLogs,
    caller: Caller,
    token: str | None,
) -> list[View]:
    """What answers at an address: each of its clusters that is known here, or the repository itself.

    Asks the server who it is. Raises SessionError, BadAddress.
    """
    gateway = _gateway(address, caller, token)
    session = gateway.session()
    try:
        server = await session.open()
    finally:
        await session.aclose()
    views: list[View] = []
    for uuid in [server] if server.is_cluster else candidates(server, logs):

        def to(uuid: UUID = uuid) -> Session:
            return session_at(address, caller, server=uuid, token=token)

        nodes = _nodes(uuid, address, config, logs, caller, token)
        if not uuid.is_cluster:
            nodes = (Node(uuid, logs.descriptions.get(uuid) or str(address), "", _COST, to, "proxied"),)
        views.append(View(str(address), repository, config, logs, None, uuid, gateway, nodes, caller.timeout, to))
    return views


def _gateway(address: Address, caller: Caller, token: str | None) -> Gateway:
    return Gateway(address, lambda: session_at(address, caller, token=token))


def _nodes(
    cluster: UUID, address: Address, config: GitConfig, logs: BranchLogs, caller: Caller, token: str | None
) -> tuple[Node, ...]:
    """The nodes of a cluster, each as a session through the gateway."""
    names = {uuid: name for names in logs.proxied.values() for name, uuid in names.items()}
    costs = costs_of(config)

    def session(uuid: UUID) -> Callable[[], Session]:
        return lambda: session_at(at_node(address, uuid), caller, server=uuid, token=token)

    nodes = [
        Node(
            uuid,
            names.get(uuid, uuid.text),
            logs.descriptions.get(uuid, ""),
            costs.get(uuid, _COST),
            session(uuid),
            "proxied",
        )
        for uuid in logs.clusters.nodes(cluster)
    ]
    return tuple(sorted(nodes, key=lambda node: node.name))


def costs_of(config: GitConfig) -> Mapping[UUID, float]:
    """What this repository's remotes cost, the cheapest for each UUID, as far as that was set or worked out once."""
    found: dict[UUID, float] = {}
    for remote in config.remotes():
        uuid, cost = config.remote(remote, "annex-uuid"), config.remote(remote, "annex-cost")
        try:
            each, number = UUID.parse(uuid or ""), float(cost or "")
        except ValueError:
            continue
        found[each] = min(number, found.get(each, number))
    return found


def _serverless(
    label: str, settings: Settings, repository: Repository, config: GitConfig, logs: BranchLogs, caller: Caller
) -> View:
    """A cluster whose nodes are remotes of this repository. Raises NoCluster, NotInitialised."""
    wanted = settings.cluster or (settings.uuid.text if settings.uuid.is_cluster else None)
    found = membership(config, logs, repository.work_tree or repository.git_dir, wanted)

    def session() -> Session:
        log = LocationLog(repository)
        whole = found.session(caller, locations=log)
        whole.owns(log)
        return whole

    if settings.tracking == "nodes":
        nodes = tuple(_by_themselves(found, logs, caller))
    else:
        description = logs.descriptions.get(settings.uuid, "")
        nodes = (Node(settings.uuid, settings.name, description, settings.cost, session, "proxied"),)
    return View(label, repository, config, logs, settings, settings.uuid, None, nodes, caller.timeout, session)


def _by_themselves(found: Membership, logs: BranchLogs, caller: Caller) -> Iterator[Node]:
    """The nodes of a cluster, those behind another gateway each by itself too."""
    members = {member.name: member for member in found.members}
    for node in found.nodes(caller):
        way = members[node.name].way
        if node.kind != "gateway":
            yield node
        elif isinstance(way, Direct):
            for uuid in sorted(node.members):
                session = partial(session_at, at_node(way.address, uuid), caller, server=uuid)
                yield Node(uuid, f"{node.name}: {uuid}", logs.descriptions.get(uuid, ""), node.cost, session, "gateway")
