"""Open a session with a cluster of this repository, after filling gaps in the configuration.

What git's configuration does not say about a remote (its UUID, a cost computed by a command) git-annex looks up on
demand; here that happens before the nodes of a cluster are determined, which is pure.
"""

from __future__ import annotations

from dataclasses import replace

import anyio

from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.repository import Repository
from cluster_remote.cluster.membership import Direct, Membership, membership, p2p_token, p2p_tokens, way_to
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.cluster.session import ClusterSession, Locations, Recorder
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.key import UUID
from cluster_remote.transport.address import BadAddress, Http
from cluster_remote.transport.opening import Caller, session_at

__all__ = ["CLUSTER_LOGS", "cluster_of", "open_cluster", "resolved"]

CLUSTER_LOGS = (
    "uuid.log",
    "cluster.log",
    "proxy.log",
    "remote.log",
    "trust.log",
    "preferred-content.log",
    "required-content.log",
)
"""The logs that a session with a cluster depends on."""
# Seconds for one remote to identify itself, and for a cost command.
_TIMEOUT = 10.0


async def resolved(config: GitConfig, repository: Repository) -> GitConfig:
    """Return the configuration with missing values filled in, for remotes that are nodes.

    A remote named as a node (`annex-cluster-node`) without a known UUID is asked for it; an `annex-cost-command` is run
    to replace `annex-cost`. Values that cannot be determined stay missing.
    """
    found: dict[str, str] = {}

    async def identify(remote: str) -> None:
        way = way_to(config, remote, repository.directory)
        if not isinstance(way, Direct) or isinstance(way.address, Http):
            # A server over HTTP does not say which repository it serves.
            return
        caller = Caller.of(repository, config, _TIMEOUT)
        try:
            caller = replace(caller, ssh_options=way.ssh_options)
            session = session_at(way.address, caller, token=p2p_token(repository, way))
            try:
                with anyio.move_on_after(_TIMEOUT):
                    found[f"remote.{remote}.annex-uuid"] = (await session.open()).text
            finally:
                await session.aclose()
        except (SessionError, BadAddress):
            # It is unreachable, so it stays a node in cluster.log without a remote.
            return

    async def compute_cost(remote: str, command: str) -> None:
        try:
            done = await repository.run("sh", "-c", command, timeout=_TIMEOUT)
            found[f"remote.{remote}.annex-cost"] = str(float(done.stdout.decode("ascii", "replace").strip()))
        except (AnnexError, ValueError):
            # As in git-annex, the remote then has its default cost.
            return

    async with anyio.create_task_group() as tasks:
        for remote in config.remotes():
            if not config.remote(remote, "annex-cluster-node"):
                continue
            if not config.remote(remote, "annex-uuid") and not config.boolean(f"remote.{remote}.annex-ignore"):
                tasks.start_soon(identify, remote)
            command = config.remote(remote, "annex-cost-command")
            if command and not config.remote(remote, "annex-cost"):
                tasks.start_soon(compute_cost, remote, command)
    return config.with_values(found) if found else config


def cluster_of(repository: Repository, config: GitConfig, logs: BranchLogs, wanted: str | None) -> Membership:
    """Return a cluster of this repository, by name or UUID (None: the only one).

    Remotes without a UUID in `config` are left out; see `resolved`. Raises NoCluster, NotInitialised.
    """
    return membership(config, logs, repository.directory, wanted, p2p_tokens(repository, config))


async def open_cluster(
    repository: Repository,
    wanted: str | None,
    caller: Caller,
    *,
    locations: Locations,
    record: Recorder | None = None,
    bypass: frozenset[UUID] = frozenset(),
    reachability: Reachability | None = None,
) -> ClusterSession:
    """Open a session with a cluster of this repository, by name or UUID (None: the only one).

    The caller keeps ownership of `locations`. Raises NoCluster, NotInitialised, CommandFailed, BranchUnreadable.
    """
    logs = await BranchLogs.read(repository, CLUSTER_LOGS)
    config = await resolved(await repository.current_config(), repository)
    found = cluster_of(repository, config, logs, wanted)
    return found.session(caller, locations=locations, record=record, bypass=bypass, reachability=reachability)
