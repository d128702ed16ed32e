"""Bringing one content to the nodes that lack it, by the shortest way there is.

From this repository where it has the content, otherwise from the nodes that have it, through here, without a copy of it
being made on the way. Where several nodes behind a gateway lack it, the gateway is given it once; whatever that leaves
out gets it by itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

from cluster_remote.annex.locations import Located
from cluster_remote.cluster.node import Node
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.cluster.session import ClusterSession
from cluster_remote.diagnosis.comparison import Answers
from cluster_remote.diagnosis.nodes import View
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Download, Present, Progress, Session, Source, SourceReading, Stored
from cluster_remote.p2p.text import printable

__all__ = ["Carrier", "Task", "Transfer", "task_for"]


@dataclass(frozen=True)
class Transfer:
    """What came of one content that nodes lacked."""

    key: Key
    file: Annotated[str | None, "a file that has this content, where files were asked about"]
    source: Annotated[Literal["here", "nodes"] | None, "where the content comes from; null if it cannot be had"]
    lacking: Annotated[tuple[UUID, ...], "nodes that lacked it"]
    stored: Annotated[tuple[UUID, ...], "nodes that have it now, and whose location is recorded"]
    reasons: Annotated[tuple[str, ...], "why others do not"]

    @property
    def complete(self) -> bool:
        return set(self.lacking) <= set(self.stored)


@dataclass(frozen=True)
class Task:
    """A content that some nodes lack, and who has it. `learnt` are holders that the location log did not know."""

    each: Located
    lacking: tuple[Node, ...]
    holders: frozenset[UUID]
    learnt: frozenset[UUID]


def task_for(view: View, each: Located, answers: Answers | None, *, whole: bool) -> Task | None:
    """What there is to do about one key; None if nothing. Pure.

    `answers` are those of the nodes, None to go by the location log. A node that gave no answer is left out, and so is
    one that has preferred or required content set. With `whole`, which means every key that the location log knows,
    only content that some node has, or is said to have, is the cluster's business; also what a dead one had.
    """
    living = view.living
    if answers is None:
        answers = {node.uuid: node.uuid in each.holders for node in living}
    holders = frozenset(uuid for uuid, answer in answers.items() if answer)
    if whole and not (holders or each.holders & view.uuids):
        return None
    lacking = tuple(node for node in living if answers.get(node.uuid) is False and view.wants_all(node))
    learnt = holders - each.holders
    return Task(each, lacking, holders, learnt) if lacking or learnt else None


class _Only:
    """Has the cluster session go to exactly some nodes: what it takes for the location log names all others."""

    def __init__(self) -> None:
        self.holders: frozenset[UUID] = frozenset()

    async def locations(self, key: Key) -> frozenset[UUID]:
        return self.holders


class Carrier:
    """Brings one content after the other; keeps its sessions with the nodes, and opens them when first needed."""

    def __init__(self, view: View, reachability: Reachability) -> None:
        self._view = view
        self._from, self._to = _Only(), _Only()
        nodes = view.living
        self._reading = self._cluster(nodes, self._from, reachability)
        self._writing = self._cluster(nodes, self._to, reachability)
        self._gateway = view.session() if view.gateway is not None and view.uuid.is_cluster else None

    def _cluster(self, nodes: Collection[Node], locations: _Only, reachability: Reachability) -> ClusterSession:
        return ClusterSession(
            self._view.uuid,
            tuple(nodes),
            locations,
            name=self._view.label,
            timeout=self._view.timeout,
            reachability=reachability,
        )

    async def aclose(self) -> None:
        """Closes all sessions."""
        for session in [self._reading, self._writing, *([self._gateway] if self._gateway else [])]:
            await session.aclose()

    async def bring(
        self, task: Task, path: bytes | None, progress: Progress | None = None, *, all_up: bool
    ) -> tuple[frozenset[UUID], tuple[str, ...]]:
        """Which of the lacking nodes say they have it now, and why the others do not.

        `path` is where the content lies in this repository, None where it does not. `all_up` says that every node of
        the cluster answers: git-annex's gateway gives up an upload if one of them does not.
        """
        key, lacking = task.each.key, frozenset(node.uuid for node in task.lacking)
        file = _associated(task.each.file)
        stored: frozenset[UUID] = frozenset()
        reasons: tuple[str, ...] = ()
        self._from.holders = task.holders
        source: Source = FileSource(path) if path is not None else _Relay(self._reading, key, file)
        if self._gateway is not None and len(lacking) > 1 and all_up:
            said, reasons = await self._store(self._gateway, key, file, source, progress)
            stored = said & lacking
        if left := lacking - stored:
            self._to.holders = self._view.uuids - left
            said, reasons = await self._store(self._writing, key, file, source, progress)
            stored |= said & left
        return stored, () if lacking <= stored else reasons

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
    """A content that is read from the nodes that have it, while it is sent to those that do not."""

    repeatable = False

    def __init__(self, session: Session, key: Key, file: AssociatedFile) -> None:
        self._session = session
        self._key = key
        self._file = file

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        async with self._session.download(self._key, self._file, offset) as download:
            yield _RelayReading(download)


class _RelayReading(SourceReading):
    def __init__(self, download: Download) -> None:
        self.length = download.length
        self._download = download

    def chunks(self) -> AsyncIterator[bytes | memoryview]:
        return self._download.chunks()

    async def valid(self) -> bool:
        return await self._download.valid()


def names(nodes: Iterable[Node], uuids: Collection[UUID]) -> str:
    """The nodes among `uuids`, as people call them."""
    return ", ".join(node.description or node.name for node in nodes if node.uuid in uuids)
