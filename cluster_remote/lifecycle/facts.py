"""Everything that a plan goes by, read before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from cluster_remote.annex import logformat
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.merge import refresh
from cluster_remote.annex.repository import Repository
from cluster_remote.annex.verification import verified
from cluster_remote.annex.version import NEEDED, OLDEST, version_number
from cluster_remote.lifecycle.steps import Guard, Setting, Step
from cluster_remote.p2p.key import UUID, decode

__all__ = ["HARMLESS", "Facts", "Stored"]


HARMLESS = frozenset({"autoenable", "cipher", "cipherkeys", "embedcreds"})
"""Parameters that say neither where contents go nor what becomes of them there."""


@dataclass(frozen=True)
class Stored:
    """A special remote of ours in remote.log. `private` ones are known to this repository only."""

    uuid: UUID
    name: str
    parameters: Mapping[str, str]
    private: bool

    @property
    def sameas(self) -> UUID | None:
        """The repository that it is the same as."""
        return UUID.if_valid(self.parameters.get("sameas-uuid"))

    @property
    def given(self) -> dict[str, str]:
        """The parameters that somebody gave, as they are given to initremote."""
        left_out = {"name", "sameas-name", "sameas-uuid", "type", "externaltype"}
        return {key: value for key, value in self.parameters.items() if key not in left_out}


@dataclass(frozen=True)
class Facts:
    """A repository at one moment: its configuration, and the logs of its git-annex branch."""

    repository: Repository
    uuid: UUID
    config: GitConfig
    logs: BranchLogs
    stored: tuple[Stored, ...]
    verified: Mapping[UUID, Mapping[str, str]]

    @classmethod
    async def read(cls, repository: Repository) -> Facts:
        """Reads everything, after having git-annex merge what was fetched. Raises AnnexError."""
        # Raises NotInitialised here rather than in the middle.
        uuid = repository.uuid
        await refresh(repository)
        logs = await BranchLogs.read(repository)
        accepted = verified(repository) or {}
        return cls(repository, uuid, repository.config(), logs, tuple(_stored(repository, logs, accepted)), accepted)

    def remote_uuid(self, remote: str) -> UUID | None:
        """The UUID of a remote's repository; None where git-annex has not found it out."""
        return self.config.remote_uuid(remote)

    def ours(self, remote: str) -> bool:
        """Whether a remote of this repository is served by this program."""
        return self.config.remote(remote, "annex-externaltype") == "cluster"

    def stored_of(self, remote: str) -> Stored | None:
        """What remote.log has of a remote of ours that is here."""
        uuid = UUID.if_valid(self.config.remote(remote, "annex-config-uuid")) or self.remote_uuid(remote)
        return next((each for each in self.stored if each.uuid == uuid), None)

    def accepted(self, stored: Stored) -> bool:
        """Whether a configuration, as it is now, is this user's own or one that was verified here."""
        words = self.verified.get(stored.uuid, {})
        return stored.private or all(
            words.get(key) == value for key, value in stored.given.items() if key not in HARMLESS
        )

    def stored_called(self, name: str) -> tuple[Stored, ...]:
        """Every remote of ours of that name in remote.log; those that others share first."""
        return tuple(sorted((each for each in self.stored if each.name == name), key=lambda each: each.private))

    def clusters_called(self, name: str) -> frozenset[UUID]:
        """The clusters that somebody calls so: their gateway, or git annex initcluster."""
        found = {uuid for names in self.logs.proxied.values() for each, uuid in names.items() if each.lower() == name}
        for uuid, description in self.logs.descriptions.items():
            if description.lower() == f"cluster {name}":
                found.add(uuid)
        return frozenset(uuid for uuid in found if uuid.is_cluster)

    def called(self, cluster: UUID) -> str | None:
        """What a cluster is called: in this repository, by a gateway, or in its description."""
        for names in (self.config.clusters(), *self.logs.proxied.values()):
            for name, uuid in names.items():
                if uuid == cluster:
                    return name
        description = self.logs.descriptions.get(cluster, "")
        return description.removeprefix("cluster ") if description.startswith("cluster ") else None

    def nodes_here(self, cluster: str) -> dict[str, UUID | None]:
        """The remotes of this repository that are nodes of a cluster of it."""
        remotes = (each for each in self.config.remotes() if cluster in self.config.clusters_of(each))
        return {each: self.remote_uuid(each) for each in remotes}

    def cost(self, remote: str) -> float | None:
        """What the user has said that a remote costs."""
        try:
            return float(self.config.remote(remote, "annex-cost") or "")
        except ValueError:
            return None

    def description(self, uuid: UUID) -> str:
        """How to call a repository before people."""
        return self.logs.descriptions.get(uuid) or uuid.text

    # Steps that depend on nothing else

    def guard(self) -> Guard:
        """The step that undoes what later ones record in the logs."""
        return Guard(self.uuid, self.logs)

    def setting(self, key: str, value: str | None) -> tuple[Step, ...]:
        """The step that gives a setting its value; none where it has that already."""
        before = self.config.all(key)
        return () if before == (() if value is None else (value,)) else (Setting(key, value, before),)

    def node_of(self, remote: str, clusters: Collection[str]) -> tuple[Step, ...]:
        """The step that makes a remote a node of these clusters and no others."""
        return self.setting(f"remote.{remote}.annex-cluster-node", " ".join(clusters) or None)

    async def old_program(self) -> None:
        """Raises AnnexError where git-annex is older than what this program works with."""
        done = await self.repository.run("git", "annex", "version", "--raw")
        version = decode(done.stdout).strip()
        if version_number(version) < OLDEST:
            raise AnnexError(f"git-annex here is version {version}, and this program needs {NEEDED} or newer")


def _stored(repository: Repository, logs: BranchLogs, accepted: Mapping[UUID, Mapping[str, str]]) -> Iterator[Stored]:
    try:
        journal = (repository.annex_dir / "journal-private" / "remote.log").read_bytes()
    except OSError:
        journal = b""
    private = {uuid for _, uuid, _ in logformat.annotated(journal)}
    # A private one that was disabled leaves its name in git-annex's log of what was verified.
    private |= accepted.keys() - logs.remotes.keys()
    for uuid, parameters in {**accepted, **logs.remotes}.items():
        if parameters.get("externaltype") == "cluster":
            name = parameters.get("sameas-name") or parameters.get("name") or ""
            yield Stored(uuid, name, parameters, uuid in private)
