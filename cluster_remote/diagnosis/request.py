"""Send one request to one server or node, and return its result: for scripts and bug reports.

These are plain requests of the protocol. Nothing is recorded and no copies are counted unless the caller requests it,
so that the server's behaviour can be told apart from git-annex's.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio.to_thread

from cluster_remote.access.identity import believed
from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.errors import NotARepository
from cluster_remote.annex.locationlog import LocationLog, recordable
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Present, Progress
from cluster_remote.remote.retrieval import matches_checksum, retrieve

if TYPE_CHECKING:
    from cluster_remote.access.settings import Settings
    from cluster_remote.access.view import View
    from cluster_remote.annex.branchlog import BranchLogs
    from cluster_remote.annex.repository import Repository
    from cluster_remote.p2p.session import Session

__all__ = [
    "Downloaded",
    "Dropped",
    "Locked",
    "Presence",
    "Recorder",
    "Uploaded",
    "check_legible",
    "download",
    "drop",
    "lock",
    "present",
    "upload",
]

_Names = Annotated[Mapping[str, str], "this repository's descriptions of these repositories, by UUID"]
_Recorded = Annotated[tuple[UUID, ...], "repositories for which the location log was updated"]
_Seconds = Annotated[float, "duration from connecting to the last byte"]


@dataclass(frozen=True)
class _Answer:
    """What every result has."""

    target: Annotated[str, "what the command line named"]
    server: Annotated[UUID, "the repository or cluster that answered"]
    version: Annotated[int | None, "the negotiated protocol version"]
    key: Key


@dataclass(frozen=True)
class Presence(_Answer):
    """Whether a server has the content."""

    present: bool
    recorded: _Recorded = ()


@dataclass(frozen=True)
class Uploaded(_Answer):
    """The result of an upload."""

    stored: Annotated[bool, "whether the content is there now"]
    already_present: Annotated[bool, "whether it was there before, so that nothing was sent"]
    uuids: Annotated[
        tuple[UUID, ...], "the repositories behind the server that stored it, or had it, by its own account"
    ]
    reasons: Annotated[tuple[str, ...], "why parts of it failed"]
    size: Annotated[int | None, "bytes of the content, if the key says"]
    seconds: _Seconds
    recorded: _Recorded = ()
    descriptions: _Names = field(default_factory=dict)


@dataclass(frozen=True)
class Downloaded(_Answer):
    """The result of a download."""

    path: Annotated[str, "the file that was written"]
    offset: Annotated[int, "bytes that were in the file before"]
    size: Annotated[int, "bytes that are in the file now"]
    verified: Annotated[bool | None, "whether the checksum matches the key; null if the key has none"]
    seconds: _Seconds


@dataclass(frozen=True)
class Dropped(_Answer):
    """The result of a removal."""

    removed: Annotated[bool, "whether the content is gone from every repository behind the server"]
    uuids: Annotated[tuple[UUID, ...], "the repositories behind the server that removed it, by the server's account"]
    reasons: Annotated[tuple[str, ...], "why parts of it failed"]
    recorded: _Recorded = ()
    descriptions: _Names = field(default_factory=dict)


@dataclass(frozen=True)
class Locked(_Answer):
    """The result of locking content."""

    locked: bool
    held: Annotated[float, "seconds it was locked"] = 0.0
    exit_code: Annotated[int | None, "exit code of the command that was run meanwhile"] = None


async def present(session: Session, target: str, key: Key) -> Presence:
    """Send CHECKPRESENT. Raises SessionError."""
    server = await session.open()
    return Presence(target, server, session.version, key, await session.check_present(key))


async def upload(
    session: Session, target: str, key: Key, file: AssociatedFile, path: bytes, progress: Progress
) -> Uploaded:
    """Send PUT. Raises SessionError; SourceError if the file is not the content of this key."""
    started = time.monotonic()
    server = await session.open()
    outcome = await session.store(key, file, FileSource(path), progress)
    stored, reasons = (True, ()) if isinstance(outcome, Present) else (outcome.stored, outcome.reasons)
    return Uploaded(
        target,
        server,
        session.version,
        key,
        stored=stored,
        already_present=isinstance(outcome, Present),
        uuids=tuple(sorted(outcome.uuids)),
        reasons=reasons,
        size=key.content_size,
        seconds=time.monotonic() - started,
    )


async def download(session: Session, target: str, key: Key, path: Path, progress: Progress) -> Downloaded:
    """Send GET, resuming at the end of the file at `path`. A partial download stays in the file.

    Raises SessionError, CannotWrite.
    """
    started = time.monotonic()
    server = await session.open()
    before = _size(path)
    await retrieve(session, key, bytes(path), progress)
    seconds = time.monotonic() - started
    verified = await anyio.to_thread.run_sync(matches_checksum, key, bytes(path))
    after = _size(path)
    return Downloaded(target, server, session.version, key, str(path), min(before, after), after, verified, seconds)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def drop(session: Session, target: str, key: Key) -> Dropped:
    """Send REMOVE; no copies are counted. Raises SessionError."""
    server = await session.open()
    outcome = await session.remove(key)
    return Dropped(target, server, session.version, key, outcome.removed, tuple(sorted(outcome.uuids)), outcome.reasons)


@asynccontextmanager
async def lock(session: Session, target: str, key: Key) -> AsyncIterator[Locked]:
    """Send LOCKCONTENT and hold the lock while the context is open. Raises SessionError, also if the lock is lost."""
    server = await session.open()
    version = session.version
    async with session.lock(key) as locked:
        yield Locked(target, server, version, key, locked)


# Recording


@dataclass(frozen=True)
class Recorder:
    """Writes one remote's answers to the location log of this repository.

    A remote that counts as one copy is recorded itself. Any other is trusted only about its nodes, or about itself if
    it is a repository: a gateway's answer never changes the records of other repositories.
    """

    repository: Repository
    settings: Settings
    logs: BranchLogs

    @classmethod
    def of(cls, view: View, node: str) -> Recorder:
        """Check that answers of a remote, or of the `node` behind it, can be recorded.

        Raises NotARepository, BadSettings.
        """
        repository, settings = view.repository, view.settings
        if repository is None:
            raise NotARepository(
                "--record writes to a repository's location log: run it inside a repository, or leave out --record"
            )
        if settings is None:
            raise BadSettings(
                "--record: an address does not prove which repository answers there; name a remote of this "
                "repository instead"
            )
        if settings.tracking == "remote":
            if settings.encryption != "none" or settings.chunked:
                raise BadSettings(
                    f"--record: {settings.name} stores encrypted or chunked content, which this "
                    f"command does not handle; use git annex copy or git annex fsck"
                )
            if node:
                raise BadSettings(
                    f"--record: {settings.name} counts as one copy, whichever nodes have it; leave out --node"
                )
        return cls(repository, settings, view.logs)

    async def record(
        self, key: Key, server: UUID, named: Collection[UUID], *, present: bool, whole: bool = True
    ) -> tuple[tuple[UUID, ...], frozenset[UUID]]:
        """Record that `server` and the repositories it named have the content, or no longer have it.

        `whole` says whether the answer also holds for `server` itself. Return the repositories that were recorded, and
        those that were not, because the remote is not trusted about them. Raises LocationLogError.
        """
        if self.settings.tracking == "remote":
            # Copies on single nodes are not tracked here.
            ours, others = frozenset({self.settings.uuid} if whole else ()), frozenset[UUID]()
        else:
            answered = {*named, server} if whole else set(named)
            ours, others = believed(answered, self.settings.uuid, self.logs, self.repository.uuid)
        async with LocationLog(self.repository) as log:
            await log.record(key, present=ours if present else (), absent=() if present else ours)
        return tuple(sorted(recordable(key, ours, None))), others


def check_legible(settings: Settings | None, key: Key) -> None:
    """Refuse to ask an encrypted remote about a key, since it uses encrypted keys. Raises BadSettings."""
    if settings is not None and settings.encryption != "none" and not key.is_encrypted:
        raise BadSettings(
            f"{settings.name} is encrypted: its nodes have the content under an encrypted key that only git-annex "
            f"knows; git annex fsck --fast --from {shlex.quote(settings.name)} checks it, git annex drop --from "
            "removes it"
        )
