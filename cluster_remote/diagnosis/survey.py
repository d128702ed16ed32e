"""Finding out the state of clusters: from the logs, from each node, and from a sample that shows whether both agree.

The logs of the git-annex branch are cheap, and what git-annex decides by. With each node there is one short
conversation, all at once. A cluster whose sample is in order may still have lost something else: `check` is what asks
about everything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import anyio.to_thread

from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.locations import Located, LocationReader, Selection, located
from cluster_remote.annex.repository import Repository, foreign_environment
from cluster_remote.annex.verification import pending
from cluster_remote.cluster.node import Node
from cluster_remote.diagnosis.log_statistics import LogStatistics
from cluster_remote.diagnosis.nodes import Gateway, Unusable, View, costs_of
from cluster_remote.diagnosis.problems import find_problems, unusable
from cluster_remote.diagnosis.state import ClusterState, Contact, GatewayState, NodeState, Sample, Status
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.session import Session

__all__ = ["paths_of", "survey"]

# Requests whose round trips are timed; the fastest counts, for it has the least of everything else in it.
_ROUND_TRIPS = 3
# Nobody has it: a key to ask about when only the time that the answer takes is of interest.
NOBODYS = Key("SHA256-s1--0000000000000000000000000000000000000000000000000000000000000000")


async def _talk(session: Session, timeout: float) -> Contact:
    """Talks with somebody for at most `timeout` seconds, and leaves the session open."""
    started = time.perf_counter()
    uuid: UUID | None = None
    connecting: float | None = None
    trips: list[float] = []
    error: str | None = None
    try:
        with anyio.fail_after(timeout):
            uuid = await session.open()
            connecting = time.perf_counter() - started
            for _ in range(_ROUND_TRIPS):
                before = time.perf_counter()
                await session.check_present(NOBODYS)
                trips.append(time.perf_counter() - before)
    except SessionError as failure:
        error = str(failure)
    except TimeoutError:
        error = f"{session.name}: no answer within {timeout:g} seconds"
    return Contact(error is None, error, uuid, session.version, connecting, min(trips) if trips else None)


@dataclass
class _Findings:
    """What has been found out of one cluster so far."""

    gateway: Contact | None = None
    nodes: dict[UUID, Contact] = field(default_factory=dict)
    samples: dict[UUID, Sample] = field(default_factory=dict)
    paths: dict[UUID, Path] = field(default_factory=dict)
    free: dict[UUID, int] = field(default_factory=dict)
    unverified: int | None = None


async def survey(views: Sequence[View], broken: Sequence[Unusable] = (), *, timeout: float, sample: int) -> Status:
    """Looks at all clusters and all their nodes at once, each for at most `timeout` seconds.

    `sample` keys of each cluster are asked for at each of its nodes. Raises AnnexError.
    """
    statistics = [
        LogStatistics(view.uuids, sample if view.legible else 0, view.uuids - {node.uuid for node in view.living})
        for view in views
    ]
    findings = [_Findings() for _ in views]
    counted = anyio.Event()
    async with anyio.create_task_group() as tasks:
        for view, own, found in zip(views, statistics, findings, strict=True):
            if view.gateway is not None:
                tasks.start_soon(_ask_gateway, view.gateway, found, timeout)
            for node in view.living:
                tasks.start_soon(_ask_node, view, node, own, counted, found, timeout)
            tasks.start_soon(_look_at_disks, view, found, timeout)
            tasks.start_soon(_ask_whether_verified, view, found)
        await _count(views, statistics)
        counted.set()
    clusters = (*map(_state, views, statistics, findings), *map(unusable, broken))
    return Status(not any(cluster.problems for cluster in clusters), clusters)


async def _count(views: Sequence[View], statistics: Sequence[LogStatistics]) -> None:
    """One pass over the location log for all clusters of the repository."""
    repository = next((view.repository for view in views if view.repository is not None), None)
    if repository is None:
        return
    async with located(repository, Selection(everything=True)) as batches:
        async for batch in batches:
            for each in statistics:
                each.count(batch)


async def _ask_gateway(gateway: Gateway, found: _Findings, timeout: float) -> None:
    session = gateway.session()
    try:
        found.gateway = await _talk(session, timeout)
    finally:
        await session.aclose()


async def _ask_node(
    view: View, node: Node, statistics: LogStatistics, counted: anyio.Event, found: _Findings, timeout: float
) -> None:
    session = node.session()
    try:
        contact = await _talk(session, timeout)
        found.nodes[node.uuid] = contact
        # How long it takes to count is none of the node's fault, and not part of the time that it is given.
        await counted.wait()
        if contact.reachable and statistics.sample and view.repository is not None:
            # A node that is merely slow to answer about so many keys is all right.
            with anyio.move_on_after(timeout):
                found.samples[node.uuid] = await _spot_check(view.repository, session, node.uuid, statistics.sample)
    except SessionError as failure:
        found.nodes[node.uuid] = replace(contact, reachable=False, error=str(failure))
    finally:
        await session.aclose()


async def _spot_check(repository: Repository, session: Session, node: UUID, sample: Sequence[Located]) -> Sample:
    answers = await session.check_all([each.key for each in sample])
    doubtful = [each for each, answer in zip(sample, answers, strict=True) if answer is not (node in each.holders)]
    # What is on its way at this very moment is no mistake: the log is read once more, and then the node is asked again.
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
    """The number of a configuration of the remote that waits for the user's word, if one does. Raises AnnexError."""
    if view.repository is None or view.settings is None:
        return None
    # Asking git-annex takes a while, and as a rule it has written down here that there is nothing to be asked.
    if view.config.remote(view.label, "annex-verified") not in (None, "verified"):
        waiting = await pending(view.repository, view.label)
        return None if waiting is None else waiting.number
    return None


async def _ask_whether_verified(view: View, found: _Findings) -> None:
    found.unverified = await unverified(view)


# Disks


async def _look_at_disks(view: View, found: _Findings, timeout: float) -> None:
    found.paths = await _paths(view)
    with anyio.move_on_after(timeout):
        for uuid, path in found.paths.items():
            # A disk that does not answer must not keep anybody waiting.
            free = await anyio.to_thread.run_sync(_free, path, abandon_on_cancel=True)
            if free is not None:
                found.free[uuid] = free


def _free(path: Path) -> int | None:
    try:
        disk = os.statvfs(path)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize


async def _paths(view: View) -> dict[UUID, Path]:
    """Where on this machine the nodes are, as far as a configuration that can be read from here tells."""
    if view.gateway is None:
        base = view.repository.work_tree or view.repository.git_dir if view.repository else Path.cwd()
        return paths_of(view.config, base, view.uuids)
    directory = view.gateway.directory
    if directory is None:
        return {}
    listing = await anyio.run_process(
        ["git", "-C", str(directory), "config", "--list", "-z"], check=False, env=foreign_environment()
    )
    config = GitConfig.parse(listing.stdout)
    found = paths_of(config, directory, view.uuids)
    own = config.get("annex.uuid")
    return found | {uuid: directory for uuid in view.uuids if uuid.text == own}


def paths_of(config: GitConfig, base: Path, wanted: Collection[UUID]) -> dict[UUID, Path]:
    """The directories of a repository's remotes that are on this machine, by UUID; `base` is the repository's own."""
    found: dict[UUID, Path] = {}
    for remote in config.remotes():
        uuid = next((each for each in wanted if each.text == config.remote(remote, "annex-uuid")), None)
        place = config.remote(remote, "annex-directory") or config.remote(remote, "url") or ""
        place = place.removeprefix("file://")
        if uuid is not None and place and ("/" in place.partition(":")[0] or ":" not in place):
            found[uuid] = base / place
    return found


# What it comes to


def _state(view: View, statistics: LogStatistics, found: _Findings) -> ClusterState:
    costs = costs_of(view.config) if view.gateway else {node.uuid: node.cost for node in view.nodes}
    known = view.repository is not None
    nodes = tuple(_node_state(view, node, statistics if known else None, found, costs) for node in view.nodes)
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
        gateway=gateway,
        nodes=nodes,
        problems=(),
    )
    return replace(state, problems=tuple(find_problems(state, found.unverified)))


def _node_state(
    view: View, node: Node, statistics: LogStatistics | None, found: _Findings, costs: Mapping[UUID, float]
) -> NodeState:
    uuid = node.uuid
    held = statistics.held[uuid] if statistics else None
    lacking = statistics.lacking[uuid] if statistics else None
    path = found.paths.get(uuid)
    return NodeState(
        uuid=uuid,
        name=node.name,
        description=node.description,
        contact=found.nodes.get(uuid),
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
    )
