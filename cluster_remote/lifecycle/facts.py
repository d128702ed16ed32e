"""The state of a repository that plans depend on, read before anything is changed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster_remote.annex import logformat
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.merge import refresh
from cluster_remote.annex.repository import Repository
from cluster_remote.annex.verification import verified
from cluster_remote.annex.version import NEEDED, OLDEST, version_number
from cluster_remote.annex.waiting import ask_disk_and_wait
from cluster_remote.lifecycle.cluster_steps import RestoreLogs
from cluster_remote.lifecycle.steps import Setting, Step
from cluster_remote.p2p.errors import Unreachable
from cluster_remote.p2p.key import UUID, decode

__all__ = ["HARMLESS", "Facts", "Stored"]


# Seconds for a disk to answer.
_DISK_TIMEOUT = 2.0
HARMLESS = frozenset({"autoenable", "cipher", "cipherkeys", "embedcreds"})
"""Parameters that affect neither where contents go nor how they are stored there."""


@dataclass(frozen=True)
class Stored:
    """A cluster remote in remote.log. `private` ones are known only to this repository."""

    uuid: UUID
    name: str
    parameters: Mapping[str, str]
    private: bool

    @property
    def sameas(self) -> UUID | None:
        """The repository that the remote was made for with --sameas."""
        return UUID.if_valid(self.parameters.get("sameas-uuid"))

    @property
    def given(self) -> dict[str, str]:
        """The parameters as given to initremote."""
        left_out = {"name", "sameas-name", "sameas-uuid", "type", "externaltype"}
        return {key: value for key, value in self.parameters.items() if key not in left_out}


@dataclass(frozen=True)
class Facts:
    """A snapshot of a repository: its configuration and the logs of its git-annex branch."""

    repository: Repository
    uuid: UUID
    config: GitConfig
    logs: BranchLogs
    stored: tuple[Stored, ...]
    verified: Mapping[UUID, Mapping[str, str]]

    @classmethod
    async def read(cls, repository: Repository) -> Facts:
        """Have git-annex merge what was fetched, then read everything. Raises AnnexError, Unreachable."""
        _check_disks(await repository.current_config(), repository.directory)
        # Raise NotInitialised here rather than later.
        uuid = repository.uuid
        await refresh(repository, remotes=True)
        logs = await BranchLogs.read(repository)
        accepted = verified(repository) or {}
        config = await repository.current_config()
        return cls(repository, uuid, config, logs, tuple(_stored(repository, logs, accepted)), accepted)

    def remote_uuid(self, remote: str) -> UUID | None:
        """Return the UUID of a remote's repository; None if git-annex does not know it yet."""
        return self.config.remote_uuid(remote)

    def ours(self, remote: str) -> bool:
        """Return whether a remote of this repository uses this program."""
        return self.config.remote(remote, "annex-externaltype") == "cluster"

    def stored_of(self, remote: str) -> Stored | None:
        """Return the entry in remote.log of a cluster remote that is enabled here."""
        uuid = UUID.if_valid(self.config.remote(remote, "annex-config-uuid")) or self.remote_uuid(remote)
        return next((each for each in self.stored if each.uuid == uuid), None)

    def accepted(self, stored: Stored) -> bool:
        """Return whether the current form of a configuration is this user's own, or was verified here."""
        words = self.verified.get(stored.uuid, {})
        return stored.private or all(
            words.get(key) == value for key, value in stored.given.items() if key not in HARMLESS
        )

    def stored_named(self, name: str) -> tuple[Stored, ...]:
        """Return all cluster remotes with this name in remote.log, shared ones first."""
        return tuple(sorted((each for each in self.stored if each.name == name), key=lambda each: each.private))

    def clusters_named(self, name: str) -> frozenset[UUID]:
        """Return the clusters with this name, according to their gateways and to their descriptions."""
        found = {uuid for names in self.logs.proxied.values() for each, uuid in names.items() if each.lower() == name}
        for uuid, description in self.logs.descriptions.items():
            if description.lower() == f"cluster {name}":
                found.add(uuid)
        return frozenset(uuid for uuid in found if uuid.is_cluster)

    def name_of(self, cluster: UUID) -> str | None:
        """Return a cluster's name: in this repository, at a gateway, or from its description."""
        for names in (self.config.clusters(), *self.logs.proxied.values()):
            for name, uuid in names.items():
                if uuid == cluster:
                    return name
        description = self.logs.descriptions.get(cluster, "")
        return description.removeprefix("cluster ") if description.startswith("cluster ") else None

    def nodes_here(self, cluster: str) -> dict[str, UUID | None]:
        """Return the remotes of this repository that are nodes of one of its clusters."""
        remotes = (each for each in self.config.remotes() if cluster in self.config.clusters_of(each))
        return {each: self.remote_uuid(each) for each in remotes}

    def cost(self, remote: str) -> float | None:
        """Return the cost that the user configured for a remote."""
        try:
            return float(self.config.remote(remote, "annex-cost") or "")
        except ValueError:
            return None

    def description(self, uuid: UUID) -> str:
        """Return a repository's name for messages."""
        return self.logs.descriptions.get(uuid) or uuid.text

    # Steps that only depend on these facts

    def restore_logs(self) -> RestoreLogs:
        """Return the step that undoes what later steps write to the logs."""
        return RestoreLogs(self.uuid, self.logs)

    def setting(self, key: str, value: str | None) -> tuple[Step, ...]:
        """Return the step that changes a setting; none if it has this value already."""
        before = self.config.all(key)
        return () if before == (() if value is None else (value,)) else (Setting(key, value, before),)

    def node_of(self, remote: str, clusters: Collection[str]) -> tuple[Step, ...]:
        """Return the step that makes a remote a node of exactly these clusters."""
        return self.setting(f"remote.{remote}.annex-cluster-node", " ".join(clusters) or None)

    async def check_version(self) -> None:
        """Check that git-annex is new enough. Raises AnnexError."""
        done = await self.repository.run("git", "annex", "version", "--raw")
        version = decode(done.stdout).strip()
        if version_number(version) < OLDEST:
            raise AnnexError(f"git-annex here is version {version}, but this program needs {NEEDED} or newer")


def _check_disks(config: GitConfig, base: Path) -> None:
    """Check that no remote is on a disk that hangs: git-annex, which makes the changes, would wait for it.

    Raises Unreachable.
    """
    for remote in config.remotes():
        directory = config.directory_of(remote)
        path = None if directory is None else str(base / directory)
        if (
            path is not None
            and ask_disk_and_wait(path, partial(os.path.lexists, f"{path}/.git"), _DISK_TIMEOUT) is None
        ):
            raise Unreachable(
                f"{remote}: {path} does not answer, and git-annex would wait for it: bring it back or unmount it "
                f"(umount -l {shlex.quote(path)}), then try again"
            )


def _stored(repository: Repository, logs: BranchLogs, accepted: Mapping[UUID, Mapping[str, str]]) -> Iterator[Stored]:
    try:
        journal = (repository.annex_dir / "journal-private" / "remote.log").read_bytes()
    except OSError:
        journal = b""
    private = {uuid for _, uuid, _ in logformat.annotated(journal)}
    # A disabled private remote stays in git-annex's log of verified configurations.
    private |= accepted.keys() - logs.remotes.keys()
    for uuid, parameters in {**accepted, **logs.remotes}.items():
        if parameters.get("externaltype") == "cluster":
            name = parameters.get("sameas-name") or parameters.get("name") or ""
            yield Stored(uuid, name, parameters, uuid in private)
