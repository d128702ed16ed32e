"""One request to one server or node, and what came of it: for scripts and for bug reports.

These are the requests of the protocol as they are. Nothing is recorded and no copies are counted unless the caller asks
for it, so that what a server does can be seen apart from what git-annex makes of it.
"""

from __future__ import annotations

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
from cluster_remote.p2p.checksum import Checksum
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Present, Progress
from cluster_remote.remote.retrieval import retrieve

if TYPE_CHECKING:
    from cluster_remote.access.settings import Settings
    from cluster_remote.annex.branchlog import BranchLogs
    from cluster_remote.annex.repository import Repository
    from cluster_remote.cli.target import Target
    from cluster_remote.p2p.session import Session

__all__ = ["Downloaded", "Dropped", "Locked", "Presence", "Recorder", "Uploaded", "download", "drop", "lock", "present"]

_Names = Annotated[Mapping[str, str], "what this repository calls those that are named here, by UUID"]
_Recorded = Annotated[tuple[UUID, ...], "repositories whose location has been written to the location log"]
_Target = Annotated[str, "what was given on the command line"]
_Server = Annotated[UUID, "the repository or cluster that answered"]
_Version = Annotated[int | None, "of the protocol, as agreed on"]
_Seconds = Annotated[float, "from the first byte to the last, with connecting"]


@dataclass(frozen=True)
class Presence:
    """Whether a server has a content."""

    target: _Target
    server: _Server
    version: _Version
    key: Key
    present: bool
    recorded: _Recorded = ()


@dataclass(frozen=True)
class Uploaded:
    """What came of an upload."""

    target: _Target
    server: _Server
    version: _Version
    key: Key
    stored: Annotated[bool, "whether the content is there now"]
    already_present: Annotated[bool, "whether it had been there before, so that nothing was sent"]
    uuids: Annotated[tuple[UUID, ...], "the repositories behind the server that it says have stored it, or have it"]
    reasons: Annotated[tuple[str, ...], "why a part of it failed"]
    size: Annotated[int | None, "bytes of the content, where the key says it"]
    seconds: _Seconds
    recorded: _Recorded = ()
    descriptions: _Names = field(default_factory=dict)


@dataclass(frozen=True)
class Downloaded:
    """What came of a download."""

    target: _Target
    server: _Server
    version: _Version
    key: Key
    path: Annotated[str, "the file that has the content now"]
    offset: Annotated[int, "bytes that were in the file before"]
    size: Annotated[int, "bytes that are in the file now"]
    verified: Annotated[bool | None, "whether the content has the key's checksum; null where the key has none"]
    seconds: _Seconds


@dataclass(frozen=True)
class Dropped:
    """What came of a removal."""

    target: _Target
    server: _Server
    version: _Version
    key: Key
    removed: Annotated[bool, "whether the content is gone from everywhere that the server stands for"]
    uuids: Annotated[tuple[UUID, ...], "the repositories behind the server that it says it removed it from"]
    reasons: Annotated[tuple[str, ...], "why a part of it failed"]
    recorded: _Recorded = ()
    descriptions: _Names = field(default_factory=dict)


@dataclass(frozen=True)
class Locked:
    """What came of locking a content."""

    target: _Target
    server: _Server
    version: _Version
    key: Key
    locked: bool
    held: Annotated[float, "seconds that it was held locked"] = 0.0
    exit_code: Annotated[int | None, "that of the command which was run meanwhile"] = None


async def present(session: Session, target: str, key: Key) -> Presence:
    """CHECKPRESENT. Raises SessionError."""
    server = await session.open()
    return Presence(target, server, session.version, key, await session.check_present(key))


async def upload(
    session: Session, target: str, key: Key, file: AssociatedFile, path: bytes, progress: Progress
) -> Uploaded:
    """PUT. Raises SessionError; SourceError where the file is not the content of this key."""
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
    """GET, from where the file at `path` ends. What came stays in the file where the rest does not come.

    Raises SessionError, CannotWrite.
    """
    started = time.monotonic()
    server = await session.open()
    before = _size(path)
    await retrieve(session, key, bytes(path), progress)
    seconds = time.monotonic() - started
    verified = await anyio.to_thread.run_sync(has_checksum, key, path)
    after = _size(path)
    return Downloaded(target, server, session.version, key, str(path), min(before, after), after, verified, seconds)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def drop(session: Session, target: str, key: Key) -> Dropped:
    """REMOVE: no copies are counted. Raises SessionError."""
    server = await session.open()
    outcome = await session.remove(key)
    return Dropped(target, server, session.version, key, outcome.removed, tuple(sorted(outcome.uuids)), outcome.reasons)


@asynccontextmanager
async def lock(session: Session, target: str, key: Key) -> AsyncIterator[Locked]:
    """LOCKCONTENT, held while the context is open. Raises SessionError, also where the lock is lost before the end."""
    server = await session.open()
    version = session.version
    async with session.lock(key) as locked:
        yield Locked(target, server, version, key, locked)


def has_checksum(key: Key, path: Path) -> bool | None:
    """Whether a file has the checksum that its key names; None for keys of a backend that is no hash known here."""
    checksum = Checksum.of(key)
    if checksum is None:
        return None
    with path.open("rb") as file:
        while chunk := file.read(1024 * 1024):
            checksum.update(chunk)
    return checksum.matches()


# Recording


@dataclass(frozen=True)
class Recorder:
    """The location log of this repository, for what one of its remotes says.

    A remote that counts as one copy is recorded itself. Any other is believed about its nodes only, or about itself
    where it is a repository: the answer of a gateway never changes what is recorded of anybody else.
    """

    repository: Repository
    settings: Settings
    logs: BranchLogs

    @classmethod
    def of(cls, target: Target) -> Recorder:
        """Check that what `target` says can be recorded. Raises NotARepository, BadSettings."""
        repository, settings = target.repository, target.settings
        if repository is None:
            raise NotARepository(
                "--record writes to the location log of a repository, and this is none; run it inside one, or leave "
                "--record out"
            )
        if settings is None:
            raise BadSettings(
                "--record: an address alone does not prove which repository answers there; name a remote of this "
                "repository instead"
            )
        if settings.tracking == "remote":
            if settings.encryption != "none" or settings.chunked:
                raise BadSettings(
                    f"--record: {settings.name} keeps what it stores encrypted or in chunks, which is not what this "
                    f"command sends or asks for; git annex copy and git annex fsck record the right thing"
                )
            if target.node:
                raise BadSettings(
                    f"--record: {settings.name} counts as one copy, whichever of its nodes have it; leave out --node"
                )
        return cls(repository, settings, target.logs)

    async def record(
        self, key: Key, server: UUID, named: Collection[UUID], *, present: bool, whole: bool = True
    ) -> tuple[tuple[UUID, ...], frozenset[UUID]]:
        """Write that `server` and those it named have the content, or have it no more.

        `whole` is whether the answer holds for `server` itself too, not only for those it named. Gives the repositories
        that were recorded, and those that were not because the remote cannot speak for them. Raises LocationLogError.
        """
        if self.settings.tracking == "remote":
            # Copies on single nodes are not known here.
            ours, others = frozenset({self.settings.uuid} if whole else ()), frozenset[UUID]()
        else:
            everybody = {*named, server} if whole else set(named)
            ours, others = believed(everybody, self.settings.uuid, self.logs, self.repository.uuid)
        async with LocationLog(self.repository) as log:
            await log.record(key, present=ours if present else (), absent=() if present else ours)
        return tuple(sorted(recordable(key, ours, None))), others


def check_legible(settings: Settings | None, key: Key) -> None:
    """Refuse to ask an encrypted remote about a key that it has under another name. Raises BadSettings."""
    if settings is not None and settings.encryption != "none" and not key.is_encrypted:
        raise BadSettings(
            f"{settings.name} is encrypted: its nodes have the content under an encrypted key, which only git-annex "
            f"can compute; git annex fsck --fast --from {settings.name} asks about it, git annex drop --from removes it"
        )
