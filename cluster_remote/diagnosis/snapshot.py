"""A snapshot of one repository: the configuration, logs and files in which problems show. Values only; see facts.py."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster_remote.access.settings import Settings
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.verification import Pending
from cluster_remote.cluster.membership import cost_of, way_to
from cluster_remote.p2p.key import UUID

__all__ = ["Branch", "Ours", "Snapshot"]


@dataclass(frozen=True)
class Ours:
    """A remote of this repository that this program serves.

    `config_uuid` is the UUID of its configuration, which is another one where the remote is the same as a repository.
    `parameters` is what remote.log has of it, `verified` what the user has said to be safe. `settings` is None, and
    `unusable` says why, where the parameters cannot be used.
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
    def quoted(self) -> str:
        """The name for a shell."""
        return shlex.quote(self.name)

    @property
    def sameas(self) -> bool:
        """Whether it is the same as a repository or a cluster, as it should be where that is what it tracks."""
        return self.config_uuid != self.uuid

    @property
    def is_cluster(self) -> bool:
        """Whether it stands for a cluster whose nodes are the copies."""
        return self.uuid.is_cluster and self.settings is not None and self.settings.tracking == "nodes"


@dataclass(frozen=True)
class Branch:
    """The git-annex branch of a git remote: as it was fetched, and as it is there. None where there is none."""

    remote: str
    fetched: str | None
    there: str | None


@dataclass(frozen=True)
class Snapshot:
    """Everything in a repository in which problems show.

    `place` is this repository's directory. `ours` are the remotes to be looked at; `everything` says whether these are
    all, so that the repository as a whole is looked at too. `earlier` are descriptions that repositories had before
    they were overwritten. `readable` are files with secrets that others can read.
    """

    place: Path
    uuid: UUID
    config: GitConfig
    logs: BranchLogs
    ours: tuple[Ours, ...]
    everything: bool = True
    branches: tuple[Branch, ...] = ()
    earlier: Mapping[UUID, str] = field(default_factory=dict)
    readable: tuple[Path, ...] = ()

    def name_of(self, uuid: UUID) -> str:
        """What to call a repository before people."""
        return self.logs.descriptions.get(uuid) or str(uuid)

    def encryption_of(self, uuid: UUID) -> str:
        """With what a repository encrypts, if it is a special remote; those that are the same as it do so too."""
        return self.logs.remotes.get(uuid, {}).get("encryption", "none")

    def remotes_with(self, uuid: UUID) -> list[str]:
        """The remotes of this repository that are the given one."""
        return [name for name in self.config.remotes() if self.config.remote(name, "annex-uuid") == uuid.text]

    def cost(self, remote: str) -> float:
        """What git-annex takes a remote to cost."""
        for ours in self.ours:
            if ours.name == remote and ours.settings is not None and not self.config.remote(remote, "annex-cost"):
                return float(ours.settings.cost)
        return cost_of(self.config, remote, way_to(self.config, remote, self.place), self.logs)
