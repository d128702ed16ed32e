"""Check that a remote is what it claims: which repository answers, and what INITREMOTE refuses.

A remote with the wrong UUID makes the location log lie to everyone who shares the repository. So every detectable
mistake is refused when the remote is created, with the command that would be right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster_remote.access.identity import candidates, display_name
from cluster_remote.access.settings import BadSettings, Settings
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import as_command
from cluster_remote.transport.address import Directory, Ssh

if TYPE_CHECKING:
    from cluster_remote.annex.branchlog import BranchLogs
    from cluster_remote.annex.gitconfig import GitConfig

__all__ = ["Commands", "check_server"]


@dataclass(frozen=True)
class Commands:
    """Correct command lines to suggest when the given one is wrong."""

    settings: Settings
    private: bool = False
    """Whether the remote is created with --private."""
    exists: bool = False
    """Whether git-annex already knows the remote, so that this is enableremote."""

    @classmethod
    def of(cls, settings: Settings, config: GitConfig, logs: BranchLogs) -> Commands:
        """Reconstruct how git-annex was called, as far as the repository shows."""
        names = {name for known in logs.remotes.values() for name in (known.get("name"), known.get("sameas-name"))}
        return cls(
            settings,
            # git-annex sets this before it starts us.
            private=config.boolean(f"remote.{settings.name}.annex-private"),
            exists=settings.name in names,
        )

    def initremote(self, sameas: UUID | None, **changes: str) -> str:
        """Return the command for this remote with some parameters changed; an empty value omits one."""
        given = {
            "type": "external",
            "externaltype": "cluster",
            "encryption": self.settings.encryption,
            "url": self.settings.url,
            "cluster": self.settings.cluster,
            **self.settings.others,
            **changes,
        }
        options = [] if sameas is None else [f"--sameas={sameas}"]
        if self.private:
            options.append("--private")
        parameters = [f"{name}={value}" for name, value in given.items() if value]
        return as_command("git annex initremote", self.settings.name, *parameters, options=" ".join(options))

    def again(self) -> str:
        """Return the same command again, to repeat once the problem is solved."""
        if self.exists:
            encryption = ["encryption=none"] if self.settings.sameas else []
            return as_command("git annex enableremote", self.settings.name, *encryption)
        return self.initremote(
            self.settings.uuid if self.settings.sameas else None, tracking=self.settings.explicit_tracking
        )

    def same_as(self, uuids: Iterable[UUID]) -> str:
        """Return the command for a remote that is the same as one of `uuids`, so that nodes count as copies."""
        # Without chunks, because nodes only count as copies of whole content.
        return " or ".join(
            self.initremote(uuid, cluster="", encryption="none", chunk="", chunksize="") for uuid in uuids
        )

    def own_uuid(self, clusters: Iterable[UUID]) -> str:
        """Return the command for a remote with its own UUID that stores to one of `clusters`."""
        return " or ".join(self.initremote(None, cluster=str(uuid)) for uuid in clusters)


def check_server(commands: Commands, server: UUID, logs: BranchLogs) -> None:
    """Refuse a wrong remote, given the UUID of the `server` at its address. Raises BadSettings."""
    settings = commands.settings
    if settings.encryption != "none":
        if settings.sameas or settings.explicit_tracking == "nodes":
            raise BadSettings(
                f"with encryption={settings.encryption} the nodes hold other keys than this repository, so "
                f"they cannot be counted as copies; give the remote its own UUID: "
                f"{commands.own_uuid([settings.uuid] if settings.sameas else candidates(server, logs))}"
            )
        # Encrypted content is not a copy of anything recorded for the nodes.
        return
    if settings.chunked and (settings.sameas or settings.explicit_tracking == "nodes"):
        raise BadSettings(
            "with chunks the nodes hold other keys than this repository, so they cannot be counted as "
            f"copies; leave chunks out: {commands.same_as(_fitting(settings, server, logs))}"
        )
    if settings.tracking == "remote":
        _check_not_counted_twice(commands, server, logs)
    elif settings.is_alias:
        _check_alias(settings, server, logs)
    elif settings.uuid != server or not settings.sameas:
        raise BadSettings(_wrong_uuid(commands, server, logs))
    elif server.is_cluster and not logs.clusters.nodes(server):
        raise BadSettings(_unknown(commands, server))


def _check_alias(settings: Settings, server: UUID, logs: BranchLogs) -> None:
    nodes = logs.clusters.nodes(server)
    if not nodes or logs.clusters.nodes(settings.uuid) != nodes:
        raise BadSettings(
            f"in cluster.log, {settings.uuid} lacks the nodes of {display_name(server, logs.descriptions)}: "
            f"{as_command('cluster-remote setup', settings.name, settings.url, options='--autoenable')} makes such a "
            "remote"
        )


def _check_not_counted_twice(commands: Commands, server: UUID, logs: BranchLogs) -> None:
    if commands.settings.sameas:
        raise BadSettings(
            f"with tracking=remote the remote has a UUID of its own, and cannot be the same as another; leave "
            f"tracking out: {commands.same_as(_fitting(commands.settings, server, logs))}"
        )
    if _known(server, logs) or logs.clusters.nodes(server) & logs.descriptions.keys():
        raise BadSettings(
            f"this repository already knows {display_name(server, logs.descriptions)}; the same content would be "
            f"counted twice, as a copy on the remote and on the nodes. Make the remote the same as what it reaches: "
            f"{commands.same_as(candidates(server, logs))}"
        )


def _known(server: UUID, logs: BranchLogs) -> bool:
    return server in logs.descriptions or server in logs.clusters.members


def _fitting(settings: Settings, server: UUID, logs: BranchLogs) -> list[UUID]:
    """Return what the remote can be the same as, preferably the user's choice."""
    if settings.sameas and settings.uuid in {server, *candidates(server, logs)}:
        return [settings.uuid]
    return candidates(server, logs)


def _wrong_uuid(commands: Commands, server: UUID, logs: BranchLogs) -> str:
    settings = commands.settings
    if not _known(server, logs):
        return _unknown(commands, server)
    there = display_name(server, logs.descriptions)
    options = candidates(server, logs)
    if settings.sameas:
        problem = f"at {settings.url} is {there}, not {display_name(settings.uuid, logs.descriptions)}"
        if commands.exists:
            return f"{problem}; give its url: {as_command('git annex enableremote', settings.name, 'url=URL')}"
    elif settings.uuid in logs.descriptions:
        problem = (
            f"uuid= would take the place of {display_name(settings.uuid, logs.descriptions)} and destroy its "
            "description for everyone; use --sameas"
        )
        # A node behind the gateway is as good a choice as its cluster.
        if settings.uuid in logs.proxied.get(server, {}).values():
            options = [settings.uuid]
    else:
        problem = f"a remote that tracks the nodes must be the same as the cluster that it reaches (at {there})"
    return f"{problem}: {commands.same_as(options)}"


def _unknown(commands: Commands, server: UUID) -> str:
    settings = commands.settings
    # If git understands the url too, it can fetch the git-annex branch from there.
    url = settings.url if isinstance(settings.address, Directory | Ssh) else "URL"
    remote = f"{settings.name}-gateway"
    fetch = f"{as_command('git remote add', remote, url)} && {as_command('git fetch', remote)} && git annex merge"
    if settings.sameas or settings.uuid.is_cluster:
        again = commands.initremote(settings.uuid, tracking="")
    else:
        again = commands.initremote(None, tracking="") + " (which will then say what to add)"
    return (
        f"this repository does not know {server}, which answers at {settings.url}: fetch the gateway's git-annex "
        f"branch first, so that the copies on the nodes can be counted: {fetch}; then {again}. Or, in a repository "
        f"that should never know the nodes, count all of them as one copy: "
        f"{commands.initremote(None, tracking='remote', cluster=_cluster_of(settings))}"
    )


def _cluster_of(settings: Settings) -> str:
    """Return the requested cluster, as the value of cluster=."""
    return settings.cluster or (str(settings.uuid) if settings.uuid.is_cluster else "")
