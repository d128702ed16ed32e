"""Ask every node about many keys and compare with the location log; correct the log on request."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex import logformat
from cluster_remote.annex.branchlog import read_files
from cluster_remote.annex.locationlog import LocationLog
from cluster_remote.annex.locations import Located, Selection
from cluster_remote.diagnosis.asking import Advance, AnsweredBatch, pipelined
from cluster_remote.diagnosis.comparison import Answers, Check, Comparison, Finding, NodeCount, compare, compare_nodes
from cluster_remote.diagnosis.content import Options, Read, Reader, Verified, move_aside
from cluster_remote.diagnosis.disks import paths
from cluster_remote.diagnosis.inquiry import Inquiry, comparable_repository, inquiry, jobs_that_fit
from cluster_remote.diagnosis.problem import Problem
from cluster_remote.diagnosis.problems import many, not_verified, unreachable
from cluster_remote.diagnosis.recording import Recorded, look_again, record
from cluster_remote.diagnosis.replaced import problems_of_missing
from cluster_remote.diagnosis.survey import unverified
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.text import as_command

if TYPE_CHECKING:
    from cluster_remote.access.view import View
    from cluster_remote.annex.repository import Repository
    from cluster_remote.diagnosis.encrypted import Cipher

__all__ = ["check", "numcopies"]

_NUMBER = re.compile(r"[0-9]{1,9}")


async def numcopies(repository: Repository) -> int:
    """Return how many copies git-annex should keep: `git annex numcopies`, else annex.numcopies, else 1.

    Ignores .gitattributes and command line options. Raises CommandFailed.
    """
    log = (await read_files(repository, ["numcopies.log"]))["numcopies.log"]
    newest = logformat.newest((clock, "numcopies", rest) for clock, rest in logformat.dated(log))
    for text in (newest.get("numcopies"), (await repository.current_config()).get("annex.numcopies")):
        if text and _NUMBER.fullmatch(text):
            return int(text)
    return 1


class _Counts:
    """The totals so far."""

    def __init__(self) -> None:
        self.keys = self.few = self.lost = self.gone = self.recorded = self.fixable = 0
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
    """A check in progress."""

    def __init__(
        self,
        view: View,
        selection: Selection,
        opened: Inquiry,
        log: LocationLog | None,
        needed: int,
        options: Options,
        contents: Reader | None,
        *,
        encrypted: bool,
    ) -> None:
        self.view = view
        self.selection = selection
        self.nodes = opened.nodes
        self.reader = opened.reader
        self.log = log
        self.needed = needed
        self.options = options
        self.contents = contents
        self.encrypted = encrypted
        self.damaged: Counter[UUID] = Counter()
        self.moved: Counter[UUID] = Counter()
        self.counts = _Counts()
        self._not_counted = {uuid for uuid in view.logs.trust if view.trust(uuid) in ("untrusted", "dead")}

    def is_copy(self, uuid: UUID) -> bool:
        """Return whether a key in this repository counts as a copy: not if the repository is untrusted or dead."""
        return uuid not in self._not_counted

    async def examine(self, batch: AnsweredBatch) -> Sequence[Finding]:
        """Return what is wrong with the keys of a batch. Raises AnnexError."""
        seen: list[tuple[Located, Answers]] = [(each, batch.about(number)) for number, each in enumerate(batch.keys)]
        doubtful = [number for number, (each, said) in enumerate(seen) if not self._compare(each, said).agrees]
        again = [seen[number][0] for number in doubtful]
        written: dict[int, Recorded] = {}
        if self.log is None:
            for number, now in zip(doubtful, await look_again(again, self.nodes, self.reader), strict=True):
                seen[number] = now
        elif doubtful:
            recorded = await record(again, self.nodes, self.reader, self.log, absent=True)
            for number, done in zip(doubtful, recorded, strict=True):
                seen[number] = done.each, done.answers
                written[number] = done
        damaged, moved = await self._read(seen)
        judged = (
            self._judge(each, said, written.get(number), damaged.get(each.key, ()), moved.get(each.key, ()))
            for number, (each, said) in enumerate(seen)
        )
        return [found for found in judged if found is not None]

    async def _read(
        self, seen: list[tuple[Located, Answers]]
    ) -> tuple[dict[Key, tuple[UUID, ...]], dict[Key, tuple[UUID, ...]]]:
        """Verify the checksums of copies; return the nodes with damaged ones, and those that moved them aside.

        With --fix, damaged copies are recorded as missing. In `seen`, such a node no longer has the key.
        """
        if self.contents is None:
            return {}, {}
        copies: dict[UUID, list[Key]] = {}
        for each, answers in seen:
            for uuid, answer in answers.items():
                if answer:
                    copies.setdefault(uuid, []).append(each.key)
        found = await self.contents.damaged(copies)
        damaged: dict[Key, tuple[UUID, ...]] = {}
        moved: dict[Key, tuple[UUID, ...]] = {}
        directories = await paths(self.view) if found and self.options.move_aside else {}
        for uuid in sorted({uuid for uuid, _ in found} & directories.keys()):
            keys = [key for owner, key in found if owner == uuid]
            await move_aside(directories[uuid], self.view.repository, keys)
        for number, (each, answers) in enumerate(seen):
            bad = tuple(sorted(uuid for uuid, key in found if key == each.key))
            if not bad:
                continue
            damaged[each.key] = bad
            self.damaged.update(bad)
            if self.log is not None:
                await self.log.record(each.key, absent=bad)
                each = replace(each, holders=each.holders - set(bad))
            if self.options.move_aside:
                now = (await self.nodes.ask([each])).about(0)
                moved[each.key] = tuple(uuid for uuid in bad if now.get(uuid) is False)
                self.moved.update(moved[each.key])
            seen[number] = (replace(each, holders=each.holders - set(bad)), {**answers, **dict.fromkeys(bad, False)})
        return damaged, moved

    def _compare(self, each: Located, answers: Answers) -> Comparison:
        return compare_nodes(answers) if self.encrypted else compare(each, answers, self.is_copy)

    def _judge(
        self,
        each: Located,
        answers: Answers,
        written: Recorded | None,
        damaged: tuple[UUID, ...],
        moved: tuple[UUID, ...],
    ) -> Finding | None:
        counts = self.counts
        counts.add(answers)
        found = self._compare(each, answers)
        missing, unlogged = set(found.missing), set(found.unlogged)
        if written is not None:
            missing |= written.absent
            unlogged |= written.present
        counts.missing.update(missing)
        counts.unlogged.update(unlogged)
        if found.gone and not each.dead and not missing:
            counts.gone += 1
        # Many old keys are on no node because they were dropped on purpose. A selected file should still have copies.
        few = (
            found.copies < self.needed
            and not each.dead
            and not (found.gone and not missing and self.selection.everything)
        )
        if not (missing or unlogged or few or damaged):
            return None
        if few:
            counts.few += 1
            counts.lost += not found.copies
            counts.fixable += found.copies > 0 and any(answer is False for answer in answers.values())
        recorded = self.log is not None and found.agrees and bool(written or damaged)
        counts.recorded += recorded
        return Finding(
            each.key,
            each.file,
            tuple(sorted(missing)),
            tuple(sorted(unlogged)),
            damaged,
            moved,
            found.copies,
            few,
            recorded,
        )

    def conclude(self, seconds: float, waiting: int | None) -> Check:
        """Return the result. `waiting` is the number of a configuration that has not been verified."""
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
                self.damaged[node.uuid],
                self.contents.unread[node.uuid] if self.contents else 0,
                errors.get(node.uuid) if counts.unknown[node.uuid] else None,
            )
            for node in self.view.living
        )
        problems = tuple(self._problems(nodes, waiting))
        return Check(
            name=self.view.label,
            healthy=not problems,
            findings=(),
            keys=counts.keys,
            numcopies=self.needed,
            few=counts.few,
            gone=counts.gone,
            recorded=counts.recorded,
            encrypted=self.encrypted,
            content=self.contents is not None,
            read=self.contents.copies if self.contents else 0,
            read_size=self.contents.size if self.contents else 0,
            unverifiable=self.contents.unverifiable if self.contents else 0,
            nodes=nodes,
            seconds=seconds,
            problems=problems,
        )

    def _problems(self, nodes: Sequence[NodeCount], waiting: int | None) -> list[Problem]:
        name = self.view.label
        problems = [] if waiting is None else [not_verified(self.view.label, waiting)]
        problems += problems_of_missing(self.view)
        for node in nodes:
            problems += self._problems_of_node(node, name)
        return problems + list(self._problems_of_copies(name))

    def _problems_of_node(self, node: NodeCount, name: str) -> Iterator[Problem]:
        """Yield what is wrong on one node; `name` is the cluster remote."""
        again, repair = _check_again(name, self.selection), as_command("cluster-remote repair", name)
        if node.unknown:
            yield unreachable(node.uuid, node.title, node.error, name)
        if node.unread:
            error = self.contents.errors.get(node.uuid) if self.contents else None
            yield unreachable(node.uuid, node.title, error, name)
        if left := node.damaged - self.moved[node.uuid]:
            yield Problem(
                "damaged",
                f"{node.title} has {many(left, 'damaged copy', 'damaged copies')}"
                + (", recorded as missing" if self.log is not None else ""),
                "Move them aside, if the node is a directory on this machine, then restore good copies. "
                "On another machine, run git annex fsck in that repository to move them aside:",
                (_check_again(name, self.selection, "--content --move-aside"), repair),
                node=node.uuid,
            )
        if node.missing and self.encrypted:
            yield Problem(
                "content-missing",
                f"{node.title} does not have {many(node.missing, 'encrypted key')} of this remote's content",
                "Copy what other nodes have to it:",
                (repair,),
                node=node.uuid,
            )
        elif node.missing and self.log is None:
            yield Problem(
                "content-missing",
                f"{node.title} does not have {many(node.missing, 'key')} that the location log says it has",
                "Correct the log, then restore the missing content:",
                (again, repair),
                node=node.uuid,
            )
        if node.unlogged and self.log is None:
            yield Problem(
                "content-unlogged",
                f"{node.title} has {many(node.unlogged, 'key')} that the location log does not list",
                "Correct the log:",
                (again,),
                node=node.uuid,
            )

    def _problems_of_copies(self, name: str) -> Iterator[Problem]:
        """Yield the keys that have too few copies, by what can be done about them."""
        counts = self.counts
        if counts.fixable:
            yield Problem(
                "few-copies",
                f"{_too_few(counts.fixable, self.needed)}, and not all nodes have it",
                "Copy it to the nodes that lack it:",
                (as_command("cluster-remote repair", name),),
            )
        if counts.lost and self.encrypted:
            yield Problem(
                "lost",
                f"no node has {many(counts.lost, 'encrypted key')} of content that {self.view.label} should have",
                "Have git-annex correct the location log, which then shows who else has the content:",
                (f"git annex fsck --fast --all --from {shlex.quote(name)}",),
            )
        elif counts.lost:
            yield Problem(
                "lost",
                f"no repository is known to have {many(counts.lost, 'key')}",
                "If another repository has it, fetch its git-annex branch. If it is lost for good, you can declare "
                "it dead, key by key (git annex dead --key), to stop these warnings.",
                ("git fetch --all",),
            )
        if left := counts.few - counts.lost - counts.fixable:
            yield Problem(
                "few-copies",
                f"{_too_few(left, self.needed)}, and the cluster's nodes cannot hold more copies",
                "Copy it to another repository too (git annex copy --auto --to), or require fewer copies "
                "(git annex numcopies). This shows where it is:",
                ("git annex whereis",),
            )


def _too_few(keys: int, needed: int) -> str:
    return f"fewer than {many(needed, 'copy', 'copies')} of {many(keys, 'key')}"


def _check_again(name: str, selection: Selection, more: str = "") -> str:
    """Return the command that checks the same again and corrects the log, with `more` options."""
    options = ["--all"] if selection.everything else []
    options += [f"--key {shlex.quote(key.text)}" for key in selection.keys]
    options += ["--fix", more] if more else ["--fix"]
    return as_command("cluster-remote check", name, *selection.files, options=" ".join(options))


async def check(
    view: View,
    selection: Selection,
    options: Options,
    *,
    tell: Callable[[Finding], None],
    advance: Advance,
    read: Read = lambda _node, _words: None,
    cipher: Cipher | None = None,
) -> Check:
    """Ask every node about every key. `tell` gets each finding immediately; the result contains none of them.

    With `cipher`, the keys are those under which the nodes have the encrypted content of a remote; no log lists them.
    Raises BadSettings, AnnexError; errors during the check are raised as a group.
    """
    repository = comparable_repository(view)
    if cipher is not None and options.fix:
        raise BadSettings(
            f"--fix: no log lists what the nodes of an encrypted remote have; git annex fsck --fast --from "
            f"{shlex.quote(view.label)} corrects what is recorded about the remote as a whole"
        )
    needed = await numcopies(repository) if cipher is None else 1
    started = time.monotonic()
    jobs = jobs_that_fit(view, options.jobs)
    verified = Verified(repository, view.uuid, resume=options.resume) if options.content else None
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(inquiry(repository, view, selection, cipher, jobs, advance))
        log = await stack.enter_async_context(LocationLog(repository)) if options.fix else None
        contents: Reader | None = None
        if verified is not None:
            stack.callback(verified.close)
            contents = Reader(view.living, jobs, verified, read)
            stack.push_async_callback(contents.aclose)
        complete = await stack.enter_async_context(pipelined(opened.batches, opened.nodes, 2 * jobs + 1))
        work = _Check(view, selection, opened, log, needed, options, contents, encrypted=cipher is not None)
        async for batch in complete:
            for finding in await work.examine(batch):
                tell(finding)
    if verified is not None:
        verified.finish()
    seconds = time.monotonic() - started
    return work.conclude(seconds, await unverified(view))
