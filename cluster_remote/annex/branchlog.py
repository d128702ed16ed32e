"""Read files of the git-annex branch, including changes that git-annex has not yet committed.

git-annex collects changes in a journal and moves them to the branch later. Always read the journal first: otherwise a
change that moves from the journal to the branch between the two reads would be missed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cluster_remote.annex import logformat
from cluster_remote.annex.catfile import CUT, TooLarge, read_blobs
from cluster_remote.annex.clusterlog import ClusterLog
from cluster_remote.annex.errors import BadAnswer, BranchUnreadable
from cluster_remote.p2p.key import UUID, decode, encode

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["BRANCH", "JOURNALS", "BranchLogs", "Trust", "journalled", "read_files"]

# The full ref, because a tag may have the same name.
BRANCH = b"refs/heads/git-annex"

# The private journal is for repositories with annex.private; it is never committed.
JOURNALS = ("journal", "journal-private")

Trust = Literal["trusted", "semitrusted", "untrusted", "dead"]
_TRUST: Mapping[str, Trust] = {"1": "trusted", "?": "semitrusted", "0": "untrusted", "X": "dead"}

_FILES = (
    "uuid.log",
    "cluster.log",
    "proxy.log",
    "remote.log",
    "trust.log",
    "group.log",
    "preferred-content.log",
    "required-content.log",
)


def journalled(annex_dir: Path, path: bytes) -> bytes:
    """Return the journalled content of a branch file in whole lines; empty if none. Raises BranchUnreadable."""
    name = decode(logformat.journal_name(path))
    found = b""
    for journal in JOURNALS:
        file = annex_dir / journal / name
        try:
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as e:
            raise BranchUnreadable(
                f"git-annex's journal file {str(file)!r} cannot be read: {e.strerror or e}; check its permissions"
            ) from e
        found += _whole_lines(content)
    return found


def _whole_lines(content: bytes) -> bytes:
    """Terminate the last line, which an interrupted append may have left unfinished, so that lines can follow."""
    return content if content.endswith(b"\n") or not content else content + b"\n"


async def read_files(repository: Repository, paths: Collection[str]) -> dict[str, bytes]:
    """Return the lines of branch files, journalled ones last, using a single command.

    Missing and corrupt files are empty, as in git-annex. Raises CommandFailed or BranchUnreadable.
    """
    journals = {path: journalled(repository.annex_dir, encode(path)) for path in paths}
    try:
        blobs = await read_blobs(repository, [BRANCH + b":" + encode(path) for path in paths])
    except TooLarge as error:
        raise BranchUnreadable(str(error)) from None
    except BadAnswer as error:
        raise BranchUnreadable(f"the git-annex branch cannot be read: git cat-file {error}; try git fsck") from None
    return {path: _whole_lines(blob or b"") + journals[path] for path, blob in zip(paths, blobs, strict=True)}


@dataclass(frozen=True)
class BranchLogs:
    """A snapshot of the git-annex branch's logs about repositories."""

    files: Mapping[str, bytes]

    @classmethod
    async def read(cls, repository: Repository, files: Iterable[str] = _FILES) -> BranchLogs:
        """Read all logs with one command. Raises CommandFailed or BranchUnreadable."""
        return cls(await read_files(repository, list(files)))

    def _file(self, name: str) -> bytes:
        return self.files.get(name, b"")

    @cached_property
    def clusters(self) -> ClusterLog:
        """Return the nodes of every known cluster."""
        return ClusterLog.parse(self._file("cluster.log"))

    @cached_property
    def descriptions(self) -> Mapping[UUID, str]:
        """Return the description of each repository, special remote and cluster."""
        return logformat.newest(logformat.annotated(self._file("uuid.log")))

    @cached_property
    def proxied(self) -> Mapping[UUID, Mapping[str, UUID]]:
        """Return the repositories and clusters that each gateway proxies, by the gateway's names for them."""
        return parse_proxies(self._file("proxy.log"))

    @cached_property
    def remotes(self) -> Mapping[UUID, Mapping[str, str]]:
        """Return the parameters of each special remote, by the UUID of its configuration.

        That is the remote's own UUID, except for a sameas remote, whose `sameas-uuid` is the UUID it shares.
        """
        newest = logformat.newest(logformat.annotated(self._file("remote.log")))
        return {uuid: logformat.settings(value) for uuid, value in newest.items()}

    @property
    def hides_remotes(self) -> bool:
        """Return whether remote.log has lines that are too long to be read."""
        return CUT in self._file("remote.log").split(b"\n")

    @cached_property
    def aliases(self) -> Mapping[UUID, UUID]:
        """Return the UUIDs that are aliases of another cluster.

        They are remotes of this program that git-annex can autoenable, which it cannot do with sameas remotes.
        """
        found: dict[UUID, UUID] = {}
        for uuid, parameters in self.remotes.items():
            if not uuid.is_cluster or "sameas-uuid" in parameters or parameters.get("externaltype") != "cluster":
                continue
            try:
                cluster = UUID(parameters.get("cluster", ""))
            except ValueError:
                continue
            if cluster != uuid and cluster in self.clusters.members:
                found[uuid] = cluster
        return found

    @cached_property
    def trust(self) -> Mapping[UUID, Trust]:
        """Return the trust levels that were set; all other repositories are semitrusted."""
        newest = logformat.newest(logformat.annotated(self._file("trust.log")))
        return {uuid: _TRUST[level] for uuid, level in newest.items() if level in _TRUST}

    @cached_property
    def groups(self) -> Mapping[UUID, frozenset[str]]:
        """Return the groups of each repository."""
        newest = logformat.newest(logformat.annotated(self._file("group.log")))
        return {uuid: frozenset(names.split()) for uuid, names in newest.items() if names.split()}

    @cached_property
    def preferred(self) -> Mapping[UUID, str]:
        """Return the preferred content expressions of the repositories that have one."""
        return self._expressions("preferred-content.log")

    @cached_property
    def required(self) -> Mapping[UUID, str]:
        """Return the required content expressions of the repositories that have one."""
        return self._expressions("required-content.log")

    def has_preferred_content(self, uuids: Iterable[UUID]) -> bool:
        """Return whether any of these repositories has preferred or required content."""
        return any(uuid in self.preferred or uuid in self.required for uuid in uuids)

    def _expressions(self, file: str) -> Mapping[UUID, str]:
        newest = logformat.newest(logformat.annotated(self._file(file)))
        return {uuid: expression for uuid, expression in newest.items() if expression.strip()}


def parse_proxies(raw: bytes) -> dict[UUID, Mapping[str, UUID]]:
    """Parse proxy.log: `TIMESTAMPs GATEWAYUUID UUID:NAME UUID:NAME …`."""
    entries: list[tuple[logformat.Clock, UUID, Mapping[str, UUID]]] = []
    for clock, rest in logformat.dated(raw):
        gateway, *proxied = rest.split(" ")
        names: dict[str, UUID] = {}
        try:
            for word in proxied:
                uuid, separator, name = word.partition(":")
                if separator and name:
                    names[name] = UUID(uuid)
            entries.append((clock, UUID(gateway), names))
        except ValueError:
            continue
    return logformat.newest(entries)
