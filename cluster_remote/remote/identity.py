"""Whether a remote is what it says: which repository is asked, and the refusals of INITREMOTE.

A remote with the wrong UUID makes the location log lie for everybody who shares the repository, so every mistake that
can be seen when the remote is made is refused there, with the command that would be right.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cluster_remote.p2p.key import UUID
from cluster_remote.remote.settings import BadSettings, Settings

if TYPE_CHECKING:
    from cluster_remote.annex.branchlog import BranchLogs

__all__ = [
    "candidates",
    "check_alone",
    "check_server",
    "initremote_command",
    "named_repository",
    "names_of",
    "wanted_server",
]


def initremote_command(settings: Settings, sameas: UUID | None, **changes: str) -> str:
    """The command line that makes this remote, with parameters changed; an empty value leaves one out."""
    parameters = {
        "type": "external",
        "externaltype": "cluster",
        "encryption": settings.encryption,
        "url": settings.url,
        "cluster": settings.cluster,
        **changes,
    }
    words = ["git", "annex", "initremote", settings.name]
    if sameas is not None:
        words.append(f"--sameas={sameas}")
    words += [f"{name}={value}" for name, value in parameters.items() if value]
    return shlex.join(words)


def names_of(uuid: UUID, descriptions: Mapping[UUID, str]) -> str:
    """How to call a repository before people: by its description, or its UUID where it has none."""
    description = descriptions.get(uuid, "")
    return description or str(uuid)


def check_alone(settings: Settings) -> None:
    """What can be refused without asking anybody. Raises BadSettings."""
    if settings.tracking == "nodes" and (settings.encryption != "none" or settings.chunked):
        what = f"encryption={settings.encryption}" if settings.encryption != "none" else "chunks"
        raise BadSettings(
            f"with {what} the nodes hold something else than this repository's keys, so they cannot be tracked as "
            f"copies; leave tracking out, so that the remote counts as one copy: "
            f"{initremote_command(settings, None, tracking='')}"
        )


def named_repository(name: str, logs: BranchLogs, own_clusters: Mapping[str, UUID]) -> UUID:
    """The repository or cluster that `cluster=` means: a UUID, or a name that a gateway has for it.

    Raises BadSettings.
    """
    try:
        return UUID.parse(name)
    except ValueError:
        pass
    found = {names[name] for names in logs.proxied.values() if name in names}
    if name in own_clusters:
        found.add(own_clusters[name])
    if len(found) == 1:
        return found.pop()
    if found:
        raise BadSettings(f"cluster={name}: several are called so; give its UUID: {', '.join(sorted(map(str, found)))}")
    raise BadSettings(
        f"cluster={name}: this repository knows none of that name; give its UUID (on the gateway: git config "
        f"annex.cluster.{name}), or fetch the gateway's git-annex branch first"
    )


def wanted_server(settings: Settings, logs: BranchLogs, own_clusters: Mapping[str, UUID]) -> UUID | None:
    """Which repository to ask for behind the address; None for the one that is there. Raises BadSettings."""
    if settings.tracking == "nodes" or settings.sameas:
        # A remote that is the same as another repository never means any other (git annex testremote turns chunks
        # and encryption on behind the back of INITREMOTE).
        return settings.uuid
    return named_repository(settings.cluster, logs, own_clusters) if settings.cluster else None


def candidates(server: UUID, logs: BranchLogs) -> list[UUID]:
    """What a remote at a server's address can be the same as: its clusters, or else the server itself."""
    return sorted(uuid for uuid in logs.proxied.get(server, {}).values() if uuid.is_cluster) or [server]


def check_server(settings: Settings, server: UUID, logs: BranchLogs) -> None:
    """What can be refused once `server` has said who it is. Raises BadSettings."""
    if settings.tracking == "remote":
        _check_not_counted_twice(settings, server, logs)
    elif settings.uuid != server or not settings.sameas:
        raise BadSettings(_wrong_uuid(settings, server, logs))
    elif server.is_cluster and not logs.clusters.nodes(server):
        raise BadSettings(_unknown(settings, server))


def _check_not_counted_twice(settings: Settings, server: UUID, logs: BranchLogs) -> None:
    if settings.uuid == server or settings.sameas:
        raise BadSettings(
            "with tracking=remote the remote has a UUID of its own; leave --sameas and uuid= out: "
            + initremote_command(settings, None, tracking="remote")
        )
    if settings.encryption != "none":
        # Encrypted content is no copy of anything that the nodes are recorded to have.
        return
    known = server in logs.descriptions or server in logs.clusters.members
    nodes = logs.clusters.nodes(server) & logs.descriptions.keys()
    if known or nodes:
        raise BadSettings(
            f"this repository knows {names_of(server, logs.descriptions)} already; the same content would be counted "
            f"twice, as a copy of the remote and of the nodes. Make it the same as what it reaches: "
            f"{initremote_command(settings, server, tracking='', cluster='')}"
        )


def _wrong_uuid(settings: Settings, server: UUID, logs: BranchLogs) -> str:
    options = candidates(server, logs)
    commands = " or ".join(initremote_command(settings, uuid, cluster="") for uuid in options)
    if server not in logs.descriptions and server not in logs.clusters.members:
        return _unknown(settings, server)
    there = names_of(server, logs.descriptions)
    if settings.sameas:
        problem = f"at {settings.url} is {there}, not {names_of(settings.uuid, logs.descriptions)}"
    elif settings.uuid in options:
        problem = "uuid= would take the cluster's place and destroy its description for everybody; use --sameas"
    else:
        problem = f"a remote that tracks the nodes has to be the same as the cluster it reaches (at {there})"
    return f"{problem}: {commands}"


def _unknown(settings: Settings, server: UUID) -> str:
    return (
        f"this repository does not know {server}, which answers at {settings.url}: fetch the gateway's git-annex "
        f"branch first, so that the copies on the nodes can be counted: git remote add {settings.name}-gateway URL && "
        f"git fetch {settings.name}-gateway && git annex merge; then again: {initremote_command(settings, server)}"
        f" (or, in a repository that shall never know the nodes, with tracking=remote)"
    )
