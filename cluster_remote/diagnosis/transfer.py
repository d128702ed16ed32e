"""Copy one content to the nodes that lack it, by the shortest path.

The source is this repository if it has the content, otherwise nodes that have it, streamed through this process without
a temporary copy. If several nodes behind a gateway lack it, it is sent to the gateway once; nodes that did not get it
that way get it individually.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from cluster_remote.access.view import View
from cluster_remote.annex.locations import Located
from cluster_remote.cluster.node import Node
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.cluster.session import ClusterSession
from cluster_remote.diagnosis.comparison import Answers
from cluster_remote.p2p.checksum import Checksum
from cluster_remote.p2p.errors import SessionError, SourceError
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Download, Present, Progress, Session, Source, SourceReading, Stored
from cluster_remote.p2p.text import printable

__all__ = ["Copier", "Task", "Transfer", "task_for"]


@dataclass(frozen=True)
class Transfer:
    """The result for one content that nodes lacked."""

    key: Key
    file: Annotated[str | None, "a file with this content, if files were selected"]
    source: Annotated[Literal["here", "nodes"] | None, "where the content comes from; null if it cannot be found"]
    lacking: Annotated[tuple[UUID, ...], "nodes that lacked it"]
    stored: Annotated[tuple[UUID, ...], "nodes that have it now: each confirmed it after the upload"]
    reasons: Annotated[tuple[str, ...], "why others do not"]

    @property
    def complete(self) -> bool:
        return set(self.lacking) <= set(self.stored)


@dataclass(frozen=True)
class Task:
    """A content that some nodes lack, and its holders. `learnt` are the holders missing from the location log."""

    each: Located
    lacking: tuple[Node, ...]
    holders: frozenset[UUID]
    learnt: frozenset[UUID]


def task_for(view: View, each: Located, answers: Answers | None, *, whole: bool) -> Task | None:
    """Return what to do about one key; None if nothing. Pure.

    `answers` are the nodes', or None to trust the location log. Skips nodes that gave no answer, or have preferred or
    required content. With `whole`, which means every key in the location log, skips content that no node has and that
    the log lists on none: it does not belong to the cluster.
    """
    living = view.living
    if answers is None:
        answers = {node.uuid: node.uuid in each.holders for node in living}
    holders = frozenset(uuid for uuid, answer in answers.items() if answer)
    if whole and not (holders or each.holders & view.uuids):
        return None
    lacking = tuple(node for node in living if answers.get(node.uuid) is False and view.wants_all(node))
    # No log lists encrypted content.
    learnt = frozenset[UUID]() if each.key.is_encrypted else holders - each.holders
    return Task(each, lacking, holders, learnt) if lacking or learnt else None


class _ChosenHolders:
    """A location log that makes the cluster session store only on certain nodes: it lists all others as holders."""

    def __init__(self) -> None:
        self.holders: frozenset[UUID] = frozenset()

    async def locations(self, key: Key) -> frozenset[UUID]:
        return self.holders


@dataclass(frozen=True)
class Copied:
    """The result of copying one content: the nodes that say they have it, why others do not, and damaged copies."""

    stored: frozenset[UUID]
    reasons: tuple[str, ...]
    damaged: frozenset[UUID]


class Copier:
    """Copies one content after the other; opens its sessions with the nodes when first needed, and keeps them."""

    def __init__(self, view: View, reachability: Reachability) -> None:
        self._view = view
        self._holders = _ChosenHolders()
        self._nodes = {node.uuid: node for node in sorted(view.living, key=lambda node: node.cost)}
        self._sources: dict[UUID, Session] = {}
        self._writing = ClusterSession(
            view.uuid,
            tuple(view.living),
            self._holders,
            name=view.label,
            timeout=view.timeout,
            reachability=reachability,
        )
        self._gateway = view.session() if view.gateway is not None and view.uuid.is_cluster else None

    async def aclose(self) -> None:
        """Close all sessions."""
        for session in [*self._sources.values(), self._writing, *([self._gateway] if self._gateway else [])]:
            await session.aclose()

    async def copy(self, task: Task, path: bytes | None, progress: Progress | None = None, *, all_up: bool) -> Copied:
        """Copy content to the nodes that lack it, from one source after the other until all of them have it.

        `path` is the content's path in this repository, if it is here. `all_up` says that every node of the cluster
        answers: git-annex's gateway aborts an upload if one does not. After a source with damaged content, or whose
        content no node accepts, the next one is tried; content is never combined from two sources.
        """
        key, file = task.each.key, _associated(task.each.file)
        missing = frozenset(node.uuid for node in task.lacking)
        reasons: tuple[str, ...] = ()
        damaged: set[UUID] = set()
        sources: list[Source] = [] if path is None else [FileSource(path)]
        holders = [uuid for uuid in self._nodes if uuid in task.holders]
        sources += [_Relay(self._session(uuid), key, file, partial(damaged.add, uuid)) for uuid in holders]
        lacking = missing
        for source in sources:
            if Checksum.of(key) is None:
                stored, why = await self._store_apart(lacking, key, file, _Whole(source, key), progress)
            else:
                stored, why = await self._store_together(lacking, key, file, source, progress, all_up=all_up)
            lacking -= stored
            reasons += why
            if not lacking:
                break
        return Copied(missing - lacking, tuple(dict.fromkeys(reasons)) if lacking else (), frozenset(damaged))

    def _session(self, uuid: UUID) -> Session:
        if uuid not in self._sources:
            self._sources[uuid] = self._nodes[uuid].session()
        return self._sources[uuid]

    async def _store_together(
        self,
        lacking: frozenset[UUID],
        key: Key,
        file: AssociatedFile,
        source: Source,
        progress: Progress | None,
        *,
        all_up: bool,
    ) -> tuple[frozenset[UUID], tuple[str, ...]]:
        stored: frozenset[UUID] = frozenset()
        reasons: tuple[str, ...] = ()
        if self._gateway is not None and len(lacking) > 1 and all_up:
            said, reasons = await self._store(self._gateway, key, file, source, progress)
            stored = said & lacking
        if left := lacking - stored:
            said, why = await self._store_on(left, key, file, source, progress)
            stored |= said
            reasons = why or reasons
        return stored, reasons

    async def _store_apart(
        self, lacking: frozenset[UUID], key: Key, file: AssociatedFile, source: Source, progress: Progress | None
    ) -> tuple[frozenset[UUID], tuple[str, ...]]:
        """Store content without a checksum node by node, since each may ask for a different part of it."""
        stored: frozenset[UUID] = frozenset()
        reasons: tuple[str, ...] = ()
        for uuid in sorted(lacking):
            said, why = await self._store_on(frozenset({uuid}), key, file, source, progress)
            stored |= said
            reasons += why
        return stored, reasons

    async def _store_on(
        self, nodes: frozenset[UUID], key: Key, file: AssociatedFile, source: Source, progress: Progress | None
    ) -> tuple[frozenset[UUID], tuple[str, ...]]:
        self._holders.holders = self._view.uuids - nodes
        said, reasons = await self._store(self._writing, key, file, source, progress)
        return said & nodes, reasons

    async def _store(
        self, session: Session, key: Key, file: AssociatedFile, source: Source, progress: Progress | None
    ) -> tuple[frozenset[UUID], tuple[str, ...]]:
        try:
            match await session.store(key, file, source, progress):
                case Present(uuids):
                    return uuids, ()
                case Stored(_, uuids, reasons):
                    return uuids, tuple(map(printable, reasons))
        except SessionError as failure:
            return frozenset(), (printable(str(failure)),)


def _associated(file: str | None) -> AssociatedFile:
    try:
        return AssociatedFile(file or "")
    except ValueError:
        return AssociatedFile()


class _Relay(Source):
    """Content read from one node while it is sent to others; calls `found_damaged` if it is wrong."""

    repeatable = False

    def __init__(self, session: Session, key: Key, file: AssociatedFile, found_damaged: Callable[[], None]) -> None:
        self._session = session
        self._key = key
        self._file = file
        self._found_damaged = found_damaged

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        async with self._session.download(self._key, self._file, offset) as download:
            # A partial download cannot be verified here; the receiving node verifies the whole.
            checksum = None if offset else Checksum.of(self._key)
            yield _RelayReading(download, checksum, self._found_damaged)


class _RelayReading(SourceReading):
    def __init__(self, download: Download, checksum: Checksum | None, found_damaged: Callable[[], None]) -> None:
        self.length = download.length
        self._download = download
        self._checksum = checksum
        self._found_damaged = found_damaged

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        async for chunk in self._download.chunks():
            if self._checksum is not None:
                self._checksum.update(chunk)
            yield chunk

    async def valid(self) -> bool:
        if not await self._download.valid():
            return False
        if self._checksum is None or self._checksum.matches():
            return True
        self._found_damaged()
        return False


class _Whole(Source):
    """Content without a checksum, which is therefore only sent as a whole.

    A part that a node already has may come from a different copy, and no checksum would show that. No message makes the
    node discard it: INVALID does not, since git-annex stores anything of the right size.
    """

    repeatable = False

    def __init__(self, source: Source, key: Key) -> None:
        self._source = source
        self._key = key

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        if offset:
            raise SourceError(
                f"the node has {offset} bytes of an earlier upload of {self._key}, and no checksum shows whether they "
                "belong to the same copy; remove .git/annex/tmp/KEY in that repository (git annex unused lists it)"
            )
        async with self._source.read(0) as reading:
            yield reading
