"""Copy content to the nodes that lack it, and record the new copies. Never removes anything."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import anyio

from cluster_remote.annex.batch import BatchProcess
from cluster_remote.annex.locationlog import LocationLog
from cluster_remote.annex.locations import Batches, Located, Selection
from cluster_remote.cluster.node import Node
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.diagnosis.asking import Advance, pipelined
from cluster_remote.diagnosis.inquiry import Inquiry, comparable_repository, inquiry, jobs_that_fit
from cluster_remote.diagnosis.problem import Problem, Verdict
from cluster_remote.diagnosis.problems import many, unreachable
from cluster_remote.diagnosis.recording import record
from cluster_remote.diagnosis.replaced import problems_of_missing
from cluster_remote.diagnosis.transfer import Copier, Task, Transfer, task_for
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.text import as_command

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from cluster_remote.access.view import View
    from cluster_remote.annex.repository import Repository
    from cluster_remote.diagnosis.encrypted import Cipher

__all__ = ["NodeRepair", "Repair", "repair"]

# Seconds for git-annex to locate a content.
_TIMEOUT = 60.0

Moved: TypeAlias = Callable[[Key, int], None]
"""Called with the number of bytes of a content transferred so far."""


@dataclass(frozen=True)
class NodeRepair:
    """The result for one node."""

    uuid: UUID
    name: Annotated[str, "the gateway's, or this repository's, name for the remote"]
    description: Annotated[str, "the repository's description"]
    lacked: Annotated[int, "contents that it lacked"]
    stored: Annotated[int, "number of these that it has now"]
    lacked_size: Annotated[int, "bytes of the contents that it lacked, as far as their keys say"]
    size: Annotated[int, "bytes of those it has now, as far as their keys say"]
    unknown: Annotated[int, "contents about which it gave no answer, and which were not copied there"]
    has_preferred_content: Annotated[bool, "whether it has preferred or required content, so that git-annex decides"]
    error: Annotated[str | None, "why it gave no answer: the first reason"]

    @property
    def title(self) -> str:
        """What to call the node in messages."""
        return self.description or self.name


@dataclass(frozen=True)
class Repair(Verdict):
    """The result of copying content to the nodes that lack it."""

    name: Annotated[str, "the remote"]
    dry_run: Annotated[bool, "whether it was a dry run, which changes nothing"]
    deliveries: Annotated[tuple[Transfer, ...], "each content that nodes lacked"]
    keys: Annotated[int, "number of keys checked"]
    recorded: Annotated[
        int, "contents that nodes had although the location log did not list them, and that it lists now"
    ]
    nodes: tuple[NodeRepair, ...]
    seconds: Annotated[float, "duration"]
    problems: tuple[Problem, ...]


class _Repair:
    """A repair in progress."""

    def __init__(
        self,
        repository: Repository,
        view: View,
        selection: Selection,
        opened: Inquiry,
        log: LocationLog,
        tell: Callable[[Transfer], None],
        moved: Moved,
        *,
        trust_log: bool,
        dry_run: bool,
        encrypted: bool,
    ) -> None:
        self.view = view
        self.repository = repository
        self.selection = selection
        self.nodes = opened.nodes
        self.reader = opened.reader
        self.log = log
        self.tell = tell
        self.moved = moved
        self.trust_log = trust_log
        self.dry_run = dry_run
        self.encrypted = encrypted
        self.reachability = Reachability()
        self.keys = self.recorded = self.unavailable = 0
        self.lacked: Counter[UUID] = Counter()
        self.stored: Counter[UUID] = Counter()
        self.size: Counter[UUID] = Counter()
        self.lacked_size: Counter[UUID] = Counter()
        self.damaged: Counter[UUID] = Counter()
        self.unknown: Counter[UUID] = Counter()
        self.reasons: dict[UUID, str] = {}

    # Finding tasks

    async def find(self, batches: Batches, jobs: int, tasks: MemoryObjectSendStream[Task]) -> None:
        """Send the tasks to `tasks`, which is closed at the end."""
        async with tasks:
            if self.trust_log and not self.encrypted:
                async for keys in batches:
                    for each in keys:
                        await self._consider(each, None, tasks)
                return
            async with pipelined(batches, self.nodes, 2 * jobs + 1) as complete:
                async for batch in complete:
                    for number, each in enumerate(batch.keys):
                        await self._consider(each, batch.about(number), tasks)

    async def _consider(
        self, each: Located, answers: dict[UUID, bool | None] | None, tasks: MemoryObjectSendStream[Task]
    ) -> None:
        self.keys += 1
        for uuid, answer in (answers or {}).items():
            self.unknown[uuid] += answer is None
        task = task_for(self.view, each, answers, whole=self.selection.everything and not self.encrypted)
        if task is not None:
            await tasks.send(task)

    # Copying

    async def work(self, tasks: MemoryObjectReceiveStream[Task], locator: BatchProcess) -> None:
        """Do tasks, one after the other, until there are no more."""
        copier = Copier(self.view, self.reachability)
        try:
            async with tasks:
                async for task in tasks:
                    await self._do(task, copier, locator)
        finally:
            await copier.aclose()

    async def _do(self, task: Task, copier: Copier, locator: BatchProcess) -> None:
        key = task.each.key
        if task.learnt and not self.dry_run:
            [known] = await record([task.each], self.nodes, self.reader, self.log, absent=False)
            self.recorded += bool(known.present & task.learnt)
        if not task.lacking:
            return
        path = await self._path(key, locator) if self.repository.uuid in task.each.holders else None
        source: Literal["here", "nodes"] | None = "here" if path is not None else "nodes" if task.holders else None
        stored: frozenset[UUID] = frozenset()
        reasons: tuple[str, ...] = ()
        if source is None:
            self.unavailable += 1
            reasons = ("neither this repository nor any reachable node has it",)
        elif not self.dry_run:
            all_up = not self.nodes.given_up and self.view.living == self.view.nodes
            copied = await copier.copy(task, path, lambda position: self.moved(key, position), all_up=all_up)
            said, reasons = copied.stored, copied.reasons
            self.damaged.update(copied.damaged)
            if said:
                # A node counts only if it confirms the content after the upload.
                [known] = await record([task.each], self.nodes, self.reader, self.log, absent=False)
                stored = frozenset(uuid for uuid in said if known.answers.get(uuid))
        for node in task.lacking:
            self.lacked[node.uuid] += 1
            self.lacked_size[node.uuid] += key.content_size or 0
            if node.uuid in stored:
                self.stored[node.uuid] += 1
                self.size[node.uuid] += key.content_size or 0
            elif reasons and source is not None:
                self.reasons.setdefault(node.uuid, _reason_of(node, reasons))
        lacking = tuple(sorted(node.uuid for node in task.lacking))
        self.tell(Transfer(key, task.each.file, source, lacking, tuple(sorted(stored)), reasons))

    async def _path(self, key: Key, locator: BatchProcess) -> bytes | None:
        """Return the path of the content in this repository; None if it is not here, whatever the log says."""
        answer = await locator.ask(bytes(key), _TIMEOUT)
        top = self.repository.directory
        path = top / os.fsdecode(answer)
        there = bool(answer) and await anyio.Path(path).is_file()
        return bytes(path) if there else None

    # The result

    def conclude(self, seconds: float) -> Repair:
        errors = self.nodes.errors
        nodes = tuple(
            NodeRepair(
                node.uuid,
                node.name,
                node.description,
                self.lacked[node.uuid],
                self.stored[node.uuid],
                self.lacked_size[node.uuid],
                self.size[node.uuid],
                self.unknown[node.uuid],
                not self.view.wants_all(node),
                errors.get(node.uuid),
            )
            for node in self.view.living
        )
        problems = tuple(self._problems(nodes))
        lacking = any(node.lacked > node.stored for node in nodes)
        healthy = not problems and not lacking
        return Repair(healthy, self.view.label, self.dry_run, (), self.keys, self.recorded, nodes, seconds, problems)

    def _problems(self, nodes: Sequence[NodeRepair]) -> list[Problem]:
        name = self.view.label
        # With --trust-log, missing nodes do not count as problems.
        problems = [] if self.trust_log else problems_of_missing(self.view)
        for node in nodes:
            if node.unknown and not self.trust_log:
                problems.append(unreachable(node.uuid, node.title, node.error, name))
            elif node.uuid in self.reasons:
                left = many(node.lacked - node.stored, "content")
                problems.append(
                    Problem(
                        "lagging",
                        f"{node.title} still lacks {left}: {self.reasons[node.uuid]}",
                        "Fix that, then try again:",
                        (as_command("cluster-remote repair", name),),
                        node=node.uuid,
                    )
                )
        for uuid, number in self.damaged.items():
            title = next(node.title for node in nodes if node.uuid == uuid)
            problems.append(
                Problem(
                    "damaged",
                    f"{title} has {many(number, 'damaged copy', 'damaged copies')}: good ones were copied instead "
                    "to the nodes that lacked them",
                    "Find all damaged copies, and record them as missing:",
                    (as_command("cluster-remote check", name, options="--all --content --fix"),),
                    node=uuid,
                )
            )
        if self.unavailable:
            problems.append(
                Problem(
                    "out-of-reach",
                    f"{many(self.unavailable, 'content')} cannot be found: neither this repository nor any reachable "
                    "node has it",
                    "Correct the log; git annex whereis then shows who else may have it:",
                    (as_command("cluster-remote check", name, options="--all --fix"),),
                )
            )
        return problems


def _reason_of(node: Node, reasons: Sequence[str]) -> str:
    """Return why a node did not store content: the reasons that begin with its name, or else all of them."""
    own = [reason for reason in reasons if reason.startswith(f"{node}: ")]
    return "; ".join(own or reasons)


async def repair(
    view: View,
    selection: Selection,
    *,
    trust_log: bool,
    dry_run: bool,
    jobs: int,
    tell: Callable[[Transfer], None],
    advance: Advance,
    moved: Moved,
    cipher: Cipher | None = None,
) -> Repair:
    """Copy to nodes what they lack, `jobs` contents at once. `tell` gets each transfer; the result contains none.

    With `trust_log`, the location log says what each node lacks; otherwise, and always for contents encrypted with
    `cipher`, every node is asked. `dry_run` changes nothing.
    Raises BadSettings, AnnexError; errors during the repair are raised as a group.
    """
    repository = comparable_repository(view)
    jobs = jobs_that_fit(view, jobs)
    started = anyio.current_time()
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(inquiry(repository, view, selection, cipher, jobs, advance))
        log = await stack.enter_async_context(LocationLog(repository))
        locator = await stack.enter_async_context(
            BatchProcess(
                ("git", "annex", "contentlocation", "--batch"),
                cwd=repository.cwd,
                env=repository.environment(),
            )
        )
        encrypted = cipher is not None
        work = _Repair(
            repository,
            view,
            selection,
            opened,
            log,
            tell,
            moved,
            trust_log=trust_log,
            dry_run=dry_run,
            encrypted=encrypted,
        )
        sending, receiving = anyio.create_memory_object_stream[Task](jobs)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work.find, opened.batches, jobs, sending)
            for _ in range(jobs):
                tasks.start_soon(work.work, receiving.clone(), locator)
            receiving.close()
    return work.conclude(anyio.current_time() - started)
