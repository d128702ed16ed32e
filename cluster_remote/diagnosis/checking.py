"""Asking every node about many keys and comparing with the location log; recording what is true, if that is wanted."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from cluster_remote.annex import logformat
from cluster_remote.annex.branchlog import read_files
from cluster_remote.annex.locationlog import LocationLog
from cluster_remote.annex.locations import Located, LocationReader, Selection, located
from cluster_remote.diagnosis.asking import Advance, Answered, Nodes, asked, pipelined
from cluster_remote.diagnosis.comparison import Answers, Check, Finding, NodeCount, compare
from cluster_remote.diagnosis.problem import Problem
from cluster_remote.diagnosis.problems import many, not_verified, unreachable
from cluster_remote.diagnosis.survey import unverified
from cluster_remote.p2p.key import UUID
from cluster_remote.remote.settings import BadSettings

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository
    from cluster_remote.diagnosis.nodes import View

__all__ = ["check", "comparable", "numcopies"]

_NUMBER = re.compile(r"[0-9]{1,9}")


async def numcopies(repository: Repository) -> int:
    """How many copies git-annex is to keep: `git annex numcopies`, else annex.numcopies, else 1.

    What .gitattributes and command line options say of single files is not asked for. Raises CommandFailed.
    """
    log = (await read_files(repository, ["numcopies.log"]))["numcopies.log"]
    newest = logformat.newest((clock, "numcopies", rest) for clock, rest in logformat.dated(log))
    for text in (newest.get("numcopies"), repository.config().get("annex.numcopies")):
        if text and _NUMBER.fullmatch(text):
            return int(text)
    return 1


def comparable(view: View) -> Repository:
    """The repository whose location log is compared. Raises BadSettings where there is nothing to compare."""
    if not view.legible:
        raise BadSettings(
            f"{view.label}: its nodes hold encrypted or chunked content, which only git-annex can tell the keys of; "
            f"git annex fsck --fast --from {shlex.quote(view.label)} asks about them"
        )
    if not view.nodes:
        raise BadSettings(
            f"{view.label}: this repository knows no node of the cluster; fetch the git-annex branch of its gateway: "
            "git fetch --all && git annex merge"
        )
    assert view.repository is not None
    return view.repository


class _Counts:
    """What there has been so far."""

    def __init__(self) -> None:
        self.keys = self.few = self.lost = self.gone = self.recorded = self.mendable = 0
        self.present: Counter[UUID] = Counter()
        self.missing: Counter[UUID] = Counter()
        self.unlogged: Counter[UUID] = Counter()
        self.unknown: Counter[UUID] = Counter()

    def add(self, answers: Answers) -> None:
        self.keys += 1
        for uuid, answer in answers.items():
            if answer is None:
                self.unknown[uuid] += 1
            elif answer:
                self.present[uuid] += 1


class _Check:
    def __init__(
        self,
        view: View,
        selection: Selection,
        nodes: Nodes,
        reader: LocationReader,
        log: LocationLog | None,
        needed: int,
    ) -> None:
        self.view = view
        self.selection = selection
        self.nodes = nodes
        self.reader = reader
        self.log = log
        self.needed = needed
        self.counts = _Counts()
        self._counting = {uuid for uuid in view.logs.trust if view.trust(uuid) in ("untrusted", "dead")}

    def is_copy(self, uuid: UUID) -> bool:
        """git-annex counts no copy in a repository that is not trusted to keep it."""
        return uuid not in self._counting

    async def examine(self, batch: Answered) -> Sequence[Finding]:
        """What is not as it should be with the keys of a batch. Raises AnnexError."""
        answers = [batch.of(number) for number in range(len(batch.keys))]
        keys = list(batch.keys)
        doubtful = [
            number
            for number, (each, said) in enumerate(zip(keys, answers, strict=True))
            if not compare(each, said, self.is_copy).agrees
        ]
        if doubtful:
            # What came or went at this very moment is no mistake, and must not be recorded as one: the log is read
            # once more, and then the nodes are asked once more.
            again = await self.reader.read([keys[number].key for number in doubtful])
            second = await self.nodes.ask([keys[number] for number in doubtful])
            for place, (number, now) in enumerate(zip(doubtful, again, strict=True)):
                keys[number] = Located(now.key, now.holders, now.dead, keys[number].file)
                answers[number] = second.of(place)
        return [
            found
            for each, said in zip(keys, answers, strict=True)
            if (found := await self._judge(each, said)) is not None
        ]

    async def _judge(self, each: Located, answers: Answers) -> Finding | None:
        counts = self.counts
        counts.add(answers)
        found = compare(each, answers, self.is_copy)
        counts.missing.update(found.missing)
        counts.unlogged.update(found.unlogged)
        if found.gone and not each.dead:
            counts.gone += 1
        # Of all keys that ever were, many are nowhere any more because nobody wanted them. A file is another matter.
        few = found.copies < self.needed and not each.dead and not (found.gone and self.selection.everything)
        if found.agrees and not few:
            return None
        if few:
            counts.few += 1
            counts.lost += not found.copies
            counts.mendable += found.copies > 0 and any(answer is False for answer in answers.values())
        recorded = self.log is not None and not found.agrees
        if self.log is not None and not found.agrees:
            await self.log.record(each.key, present=found.unlogged, absent=found.missing)
            counts.recorded += 1
        return Finding(
            each.key,
            each.file,
            tuple(sorted(found.missing)),
            tuple(sorted(found.unlogged)),
            found.copies,
            few,
            recorded,
        )

    def conclude(self, seconds: float, waiting: int | None) -> Check:
        """What it all comes to. `waiting` is the number of a configuration that has not been verified."""
        counts, errors = self.counts, self.nodes.errors
        nodes = tuple(
            NodeCount(
                node.uuid,
                node.name,
                node.description,
                counts.present[node.uuid],
                counts.missing[node.uuid],
                counts.unlogged[node.uuid],
                counts.unknown[node.uuid],
                errors.get(node.uuid) if counts.unknown[node.uuid] else None,
            )
            for node in self.view.living
        )
        problems = tuple(self._problems(nodes, waiting))
        return Check(
            name=self.view.label,
            well=not problems,
            findings=(),
            keys=counts.keys,
            numcopies=self.needed,
            few=counts.few,
            gone=counts.gone,
            recorded=counts.recorded,
            nodes=nodes,
            seconds=seconds,
            problems=problems,
        )

    def _problems(self, nodes: Sequence[NodeCount], waiting: int | None) -> list[Problem]:
        name = shlex.quote(self.view.label)
        again = f"cluster-remote check {name} {_words(self.selection)}--fix"
        problems = [] if waiting is None else [not_verified(self.view.label, waiting)]
        for node in nodes:
            if node.unknown:
                problems.append(unreachable(node.uuid, node.title, node.error, name))
            if node.missing and self.log is None:
                problems.append(
                    Problem(
                        "content-missing",
                        f"{node.title} does not have {many(node.missing, 'key')} that the location log says it has",
                        "Record what is true, then bring back what is missing:",
                        (again, f"cluster-remote repair {name}"),
                        node=node.uuid,
                    )
                )
            if node.unlogged and self.log is None:
                problems.append(
                    Problem(
                        "content-unlogged",
                        f"{node.title} has {many(node.unlogged, 'key')} that the location log does not know of",
                        "Record what is true:",
                        (again,),
                        node=node.uuid,
                    )
                )
        counts = self.counts
        if counts.mendable:
            problems.append(
                Problem(
                    "few-copies",
                    f"{_short(counts.mendable, self.needed)}, and not all nodes have it",
                    "Bring it to the nodes that lack it:",
                    (f"cluster-remote repair {name}",),
                )
            )
        if counts.lost:
            problems.append(
                Problem(
                    "lost",
                    f"no repository is known to have {many(counts.lost, 'key')}",
                    "If another repository has it, fetch from there. If it is lost for good, say so, and nobody is "
                    "warned of it any more:",
                    ("git fetch --all", "git annex dead --key KEY"),
                )
            )
        if left := counts.few - counts.lost - counts.mendable:
            problems.append(
                Problem(
                    "few-copies",
                    f"{_short(left, self.needed)}, and the nodes of the cluster cannot hold any more of it",
                    "Copy it to another repository as well, or be content with fewer copies:",
                    ("git annex copy --auto --to REMOTE", "git annex numcopies NUMBER"),
                )
            )
        return problems


def _short(keys: int, needed: int) -> str:
    return f"fewer than {many(needed, 'copy', 'copies')} of {many(keys, 'key')}"


def _words(selection: Selection) -> str:
    """The selection as it was on the command line."""
    words = ["--all"] if selection.everything else []
    words += [f"--key {shlex.quote(key.text)}" for key in selection.keys]
    words += [shlex.quote(file) for file in selection.files]
    return "".join(f"{word} " for word in words)


async def check(
    view: View,
    selection: Selection,
    *,
    fix: bool,
    jobs: int,
    tell: Callable[[Finding], None],
    advance: Advance,
) -> Check:
    """Asks every node about every key. `tell` is given each finding at once; the outcome has none of them.

    Raises BadSettings, AnnexError; errors that come up on the way leave this as a group.
    """
    repository = comparable(view)
    needed = await numcopies(repository)
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        batches = await stack.enter_async_context(located(repository, selection))
        nodes = await stack.enter_async_context(asked(view.living, jobs, advance))
        reader = await stack.enter_async_context(LocationReader(repository))
        log = await stack.enter_async_context(LocationLog(repository)) if fix else None
        complete = await stack.enter_async_context(pipelined(batches, nodes, 2 * jobs + 1))
        work = _Check(view, selection, nodes, reader, log, needed)
        async for batch in complete:
            for finding in await work.examine(batch):
                tell(finding)
    seconds = time.monotonic() - started
    return work.conclude(seconds, await unverified(view))
