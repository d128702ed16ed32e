"""A snapshot of one repository: the configuration, logs and files that show problems. Values only; see facts.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster_remote.access.settings import Settings
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.verification import Pending
from cluster_remote.cluster.membership import cost_of, way_to
from cluster_remote.p2p.key import UUID

__all__ = ["Branch", "RemoteFacts", "Snapshot"]


@dataclass(frozen=True)
class RemoteFacts:
    """A cluster remote of this repository: one that uses this program.

    `config_uuid` is the UUID of its configuration, which differs from `uuid` if the remote is the same as a repository.
    `parameters` are those in remote.log, `verified` those that the user has confirmed as safe. If the parameters are
    invalid, `settings` is None and `unusable` says why.
    """

    name: str
    uuid: UUID
    config_uuid: UUID
    parameters: Mapping[str, str]
    verified: Mapping[str, str] | None
    pending: Pending | None = None
    settings: Settings | None = None
    unusable: str = ""

    @property
    def sameas(self) -> bool:
        """Whether it was made with --sameas a repository or a cluster, as required for tracking that."""
        return self.config_uuid != self.uuid

    @property
    def is_cluster(self) -> bool:
        """Whether it is a remote for a cluster whose nodes count as copies."""
        return self.uuid.is_cluster and self.settings is not None and self.settings.tracking == "nodes"


@dataclass(frozen=True)
class Branch:
    """The git-annex branch of a git remote: as last fetched, and as it is there now. None if there is none."""

    remote: str
    fetched: str | None
    there: str | None


@dataclass(frozen=True)
class Snapshot:
    """Everything in a repository that shows problems.

    `directory` is this repository's. `cluster_remotes` are those to check; `everything` says whether these are all
    of them, so that the repository as a whole is checked too. `earlier` are descriptions of repositories that have been
    overwritten. `exposed_files` are files with secrets that other users can read.
    """

    directory: Path
    uuid: UUID
    config: GitConfig
    logs: BranchLogs
    cluster_remotes: tuple[RemoteFacts, ...]
    everything: bool = True
    branches: tuple[Branch, ...] = ()
    earlier: Mapping[UUID, str] = field(default_factory=dict)
    exposed_files: tuple[Path, ...] = ()

    def name_of(self, uuid: UUID) -> str:
        """Return what to call a repository in messages."""
        return self.logs.descriptions.get(uuid) or str(uuid)

    def encryption_of(self, uuid: UUID) -> str:
        """Return the encryption of a special remote; remotes that are the same as it share that."""
        return self.logs.remotes.get(uuid, {}).get("encryption", "none")

    def remotes_with(self, uuid: UUID) -> list[str]:
        """Return the remotes of this repository with this UUID."""
        return [name for name in self.config.remotes() if self.config.remote(name, "annex-uuid") == uuid.text]

    def cost(self, remote: str) -> float:
        """Return the cost that git-annex assumes for a remote."""
        for each in self.cluster_remotes:
            if each.name == remote and each.settings is not None and not self.config.remote(remote, "annex-cost"):
                return float(each.settings.cost)
        return cost_of(self.config, remote, way_to(self.config, remote, self.directory), self.logs)
