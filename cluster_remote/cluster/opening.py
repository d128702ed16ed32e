"""Open a session with a cluster of this repository, after filling gaps in the configuration.

What git's configuration does not say about a remote (its UUID, a cost computed by a command) git-annex looks up on
demand; here that happens before the nodes of a cluster are determined, which is pure.
"""

from __future__ import annotations

import anyio

from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.locationlog import LocationLog
from cluster_remote.annex.repository import Repository
from cluster_remote.cluster.membership import Direct, membership, way_to
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.cluster.session import ClusterSession, Locations, Recorder
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.key import UUID
from cluster_remote.transport.address import BadAddress
from cluster_remote.transport.opening import Caller, session_at

__all__ = ["open_cluster", "resolved"]

_LOGS = (
    "uuid.log",
    "cluster.log",
    "proxy.log",
    "remote.log",
    "trust.log",
    "preferred-content.log",
    "required-content.log",
)
# Seconds for one remote to identify itself, and for a cost command.
_ANSWER = 10.0


async def resolved(config: GitConfig, repository: Repository) -> GitConfig:
    """Return the configuration with missing values filled in, for remotes that are nodes.

    A remote named as a node (`annex-cluster-node`) without a known UUID is asked for it; an `annex-cost-command` is run
    to replace `annex-cost`. What cannot be found out stays as it is.
    """
    found: dict[str, str] = {}

    async def identify(remote: str) -> None:
        way = way_to(config, remote, repository.place)
        if not isinstance(way, Direct):
            return
        caller = Caller(
            repository.uuid,
            _ANSWER,
            config.get("core.sshCommand"),
            config.get("ssh.variant"),
            config.boolean("annex.sshcaching", True),
            ssh_options=way.ssh_options,
        )
        try:
            session = session_at(way.address, caller)
            try:
                with anyio.move_on_after(_ANSWER):
                    found[f"remote.{remote}.annex-uuid"] = (await session.open()).text
            finally:
                await session.aclose()
        except (SessionError, BadAddress):
            # It is unreachable, so it stays a node in cluster.log without a remote.
            return

    async def value(remote: str, command: str) -> None:
        try:
            done = await repository.run("sh", "-c", command, timeout=_ANSWER)
            found[f"remote.{remote}.annex-cost"] = str(float(done.stdout.decode("ascii", "replace").strip()))
        except (AnnexError, ValueError):
            # As with git-annex, the remote then has its cost without the command.
            return

    async with anyio.create_task_group() as tasks:
        for remote in config.remotes():
            if not config.remote(remote, "annex-cluster-node"):
                continue
            if not config.remote(remote, "annex-uuid") and not config.boolean(f"remote.{remote}.annex-ignore"):
                tasks.start_soon(identify, remote)
            command = config.remote(remote, "annex-cost-command")
            if command and not config.remote(remote, "annex-cost"):
                tasks.start_soon(value, remote, command)
    return config.with_values(found) if found else config


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
    """Open a session with a cluster of this repository, by name or UUID (None: the only one).

    The caller keeps ownership of `locations`; without it, the session has its own, and closes it. Callers that open
    many sessions read the `membership` once. Raises NoCluster, NotInitialised, CommandFailed, BranchUnreadable.
    """
    logs = await BranchLogs.read(repository, _LOGS)
    found = membership(await resolved(await repository.current_config(), repository), logs, repository.place, wanted)
    if locations is not None:
        return found.session(caller, locations=locations, record=record, bypass=bypass, reachability=reachability)
    log = LocationLog(repository)
    session = found.session(caller, locations=log, record=record, bypass=bypass, reachability=reachability)
    session.owns(log)
    return session
