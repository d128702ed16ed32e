"""Find out the state of clusters: from the logs, from each node, and from a sample that shows whether the two agree.

The logs of the git-annex branch are cheap to read, and git-annex itself relies on them. All nodes are contacted at once
and briefly. A cluster whose sample is fine may still have lost other content: `check` asks about everything.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import anyio.to_thread

from cluster_remote.access.view import View
from cluster_remote.access.ways import Serverless, ThroughGateway, costs_of
from cluster_remote.annex.locations import Located, LocationReader, Selection, located
from cluster_remote.annex.repository import Repository
from cluster_remote.annex.verification import pending
from cluster_remote.cluster.node import Node
from cluster_remote.diagnosis.asking import MOST_AT_ONCE
from cluster_remote.diagnosis.disks import free_space, paths
from cluster_remote.diagnosis.log_statistics import LogStatistics
from cluster_remote.diagnosis.probe import round_trips
from cluster_remote.diagnosis.problems import find_problems, unusable
from cluster_remote.diagnosis.replaced import missing_nodes, problems_of_missing
from cluster_remote.diagnosis.state import ClusterState, Contact, GatewayState, NodeState, Sample, Status, Unusable
from cluster_remote.p2p.errors import SessionError, WrongRepository
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Session
from cluster_remote.transport.address import BadAddress

__all__ = ["survey", "unverified"]

_NO_REMOTE = Contact(False, "no remote of this repository leads to it", None, None, None, None)
# A node without a remote is never compared by cost.
_UNKNOWN_COST = 1000.0
# git-annex-shell's message if the repository is not the requested one.
_FOUND_UUID = re.compile(r"expected repository UUID \S+ but found UUID ([0-9a-f-]{36})")


async def _contact(session: Session, timeout: float) -> Contact:
    """Contact a server or node for at most `timeout` seconds, and leave the session open."""
    started = time.perf_counter()
    uuid: UUID | None = None
    connecting: float | None = None
    trips: list[float] = []
    error: str | None = None
    stranger = False
    try:
        with anyio.fail_after(timeout):
            uuid = await session.open()
            connecting = time.perf_counter() - started
            async for seconds in round_trips(session):
                trips.append(seconds)
    except SessionError as failure:
        error, stranger = str(failure), _is_stranger(failure)
        uuid = _found(failure) or uuid
    except TimeoutError:
        error = f"{session.name}: no answer within {timeout:g} seconds"
    return Contact(error is None, error, uuid, session.version, connecting, min(trips) if trips else None, stranger)


def _found(failure: SessionError) -> UUID | None:
    """Return the other repository that answered, if it said which one it is."""
    if isinstance(failure, WrongRepository):
        return failure.found
    said = _FOUND_UUID.search(str(failure))
    return None if said is None else UUID.if_valid(said[1])


def _is_stranger(failure: SessionError) -> bool:
    """Return whether a repository other than the requested one answered."""
    # git-annex's gateway and the node itself report this only on standard error.
    gone = "not configured to proxy for repository" in str(failure)
    return gone or isinstance(failure, WrongRepository) or _found(failure) is not None


@dataclass
class _Findings:
    """What is known about one cluster so far."""

    gateway: Contact | None = None
    nodes: dict[UUID, Contact] = field(default_factory=dict)
    samples: dict[UUID, Sample] = field(default_factory=dict)
    paths: dict[UUID, Path] = field(default_factory=dict)
    free: dict[UUID, int] = field(default_factory=dict)
    unverified: int | None = None


async def survey(views: Sequence[View], broken: Sequence[Unusable] = (), *, timeout: float, sample: int) -> Status:
    """Examine all clusters and all their nodes, as many at once as `MOST_AT_ONCE`, each for at most `timeout` seconds.

    Each node is asked about `sample` keys of its cluster. Raises AnnexError.
    """
    statistics = [
        LogStatistics(
            view.uuids.union(missing_nodes(view)),
            sample if view.legible else 0,
            view.uuids - {node.uuid for node in view.living},
        )
        for view in views
    ]
    findings = [_Findings() for _ in views]
    counted, contacts = anyio.Event(), anyio.Semaphore(MOST_AT_ONCE)
    async with anyio.create_task_group() as tasks:
        for view, own, found in zip(views, statistics, findings, strict=True):
            if view.gateway is not None:
                tasks.start_soon(_ask_gateway, view.gateway, found, timeout)
            for node in (*view.living, *_nodes_inside(view)):
                tasks.start_soon(_ask_node, view, node, own, counted, contacts, found, timeout)
            tasks.start_soon(_look_at_disks, view, found, timeout)
            tasks.start_soon(_ask_whether_verified, view, found)
        await _count(views, statistics)
        counted.set()
    clusters = (*map(_state, views, statistics, findings), *map(unusable, broken))
    return Status(not any(cluster.problems for cluster in clusters), clusters)


async def _count(views: Sequence[View], statistics: Sequence[LogStatistics]) -> None:
    """Read the location log once, for all clusters of the repository."""
    repository = next((view.repository for view in views if view.repository is not None), None)
    if repository is None:
        return
    async with located(repository, Selection(everything=True)) as batches:
        async for batch in batches:
            for each in statistics:
                each.count(batch)


async def _ask_gateway(gateway: ThroughGateway, found: _Findings, timeout: float) -> None:
    session = gateway.session()
    try:
        found.gateway = await _contact(session, timeout)
    finally:
        await session.aclose()


async def _ask_node(
    view: View,
    node: Node,
    statistics: LogStatistics,
    counted: anyio.Event,
    contacts: anyio.Semaphore,
    found: _Findings,
    timeout: float,
) -> None:
    session = node.session()
    try:
        async with contacts:
            contact = await _contact(session, timeout)
        found.nodes[node.uuid] = contact
        # Counting may take long, and must not use up the node's timeout.
        await counted.wait()
        if contact.reachable and statistics.sample and view.repository is not None:
            # A node that is just too slow for so many keys is fine.
            with anyio.move_on_after(timeout):
                found.samples[node.uuid] = await _spot_check(view.repository, session, node.uuid, statistics.sample)
    except SessionError as failure:
        found.nodes[node.uuid] = replace(contact, reachable=False, error=str(failure))
    finally:
        await session.aclose()


async def _spot_check(repository: Repository, session: Session, node: UUID, sample: Sequence[Located]) -> Sample:
    answers = await session.check_all([each.key for each in sample])
    doubtful = [each for each, answer in zip(sample, answers, strict=True) if answer is not (node in each.holders)]
    # Changes in progress are not mistakes: read the log again, then ask the node again.
    async with LocationReader(repository) as reader:
        logged = await reader.read([each.key for each in doubtful])
    again = await session.check_all([each.key for each in doubtful])
    pairs = list(zip(logged, again, strict=True))
    return Sample(
        len(sample),
        sum(answer is False and node in each.holders for each, answer in pairs),
        sum(answer is True and node not in each.holders for each, answer in pairs),
    )


async def unverified(view: View) -> int | None:
    """Return the number of the remote's configuration that the user has to verify, if any. Raises AnnexError."""
    if view.repository is None or view.settings is None:
        return None
    # Asking git-annex takes a while, and usually git's configuration already says that there is no need.
    if view.config.is_unverified(view.label):
        waiting = await pending(view.repository, view.label)
        return None if waiting is None else waiting.number
    return None


async def _ask_whether_verified(view: View, found: _Findings) -> None:
    found.unverified = await unverified(view)


async def _look_at_disks(view: View, found: _Findings, timeout: float) -> None:
    with anyio.move_on_after(timeout):
        found.paths = await paths(view)
    found.free = await free_space(found.paths, timeout)


# The result


def _state(view: View, statistics: LogStatistics, found: _Findings) -> ClusterState:
    inside = _nodes_inside(view)
    costs = costs_of(view.config) if view.gateway else {node.uuid: node.cost for node in (*view.nodes, *inside)}
    known = view.repository is not None
    unreached = [_unreached(view, uuid) for uuid in missing_nodes(view)]
    nodes = tuple(
        _node_state(view, node, statistics if known else None, found, costs) for node in [*view.nodes, *unreached]
    ) + tuple(_node_state(view, node, None, found, costs) for node in inside)
    gateway = None
    if view.gateway is not None and found.gateway is not None:
        who = found.gateway.uuid
        description = view.logs.descriptions.get(who, "") if who is not None else ""
        gateway = GatewayState(str(view.gateway.address), description, found.gateway)
    state = ClusterState(
        name=view.label,
        uuid=view.uuid,
        description=view.logs.descriptions.get(view.uuid, ""),
        tracking=view.settings.tracking if view.settings else "nodes",
        keys=statistics.all.keys if known else None,
        size=statistics.all.size if known else None,
        unverifiable=statistics.unverifiable if known else None,
        gateway=gateway,
        nodes=nodes,
        problems=(),
    )
    problems = (*problems_of_missing(view), *find_problems(state, found.unverified))
    return replace(state, problems=problems)


def _nodes_inside(view: View) -> tuple[Node, ...]:
    """Return the nodes behind a remote without a server that counts as one copy; no log tracks what each has."""
    if not isinstance(view.way, Serverless) or view.settings is None or view.settings.tracking != "remote":
        return ()
    nodes = view.way.nodes(view.way.membership.cluster)
    return tuple(node for node in nodes if view.trust(node.uuid) != "dead" and node.uuid not in view.uuids)


def _unreached(view: View, uuid: UUID) -> Node:
    def session() -> Session:
        raise BadAddress(f"no remote of this repository leads to {uuid}")

    return Node(uuid, uuid.text, view.logs.descriptions.get(uuid, ""), _UNKNOWN_COST, session, "proxied")


def _node_state(
    view: View, node: Node, statistics: LogStatistics | None, found: _Findings, costs: Mapping[UUID, float]
) -> NodeState:
    uuid = node.uuid
    reached = uuid in view.uuids or any(each.uuid == uuid for each in _nodes_inside(view))
    held = statistics.held[uuid] if statistics else None
    lacking = statistics.lacking[uuid] if statistics else None
    path = found.paths.get(uuid)
    return NodeState(
        uuid=uuid,
        name=node.name,
        description=node.description,
        contact=found.nodes.get(uuid) if reached else _NO_REMOTE,
        trust=view.trust(uuid),
        groups=tuple(sorted(view.logs.groups.get(uuid, ()))),
        cost=costs.get(uuid),
        preferred=view.logs.preferred.get(uuid),
        required=view.logs.required.get(uuid),
        keys=held.keys if held else None,
        size=held.size if held else None,
        unsized=held.unsized if held else None,
        lacking=lacking.keys if lacking else None,
        lacking_size=lacking.size if lacking else None,
        sample=found.samples.get(uuid),
        free=found.free.get(uuid),
        path=str(path) if path else None,
        remote=reached,
    )
