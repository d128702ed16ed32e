"""cluster-remote repair: copy content to the nodes that lack it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from cluster_remote.annex.locations import Selection, located
from cluster_remote.annex.repository import Repository
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.keywise import (
    FirstFindings,
    advanced,
    cluster_and_files,
    exit_if_unhealthy,
    print_json,
    progress_of,
    selection_of,
    show_first,
)
from cluster_remote.cli.options import DryRun, Json, NodeTimeout, OnlyCluster
from cluster_remote.cli.progress import ProgressLines, progress
from cluster_remote.cli.render import console, duration, show_problems, size, table
from cluster_remote.cli.target import cluster_view
from cluster_remote.diagnosis import repairing
from cluster_remote.diagnosis.encrypted import view_of_nodes
from cluster_remote.diagnosis.repairing import Repair
from cluster_remote.diagnosis.transfer import Transfer
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.text import printable

__all__ = ["repair"]


class _Incomplete(FirstFindings["Transfer"]):
    """The transfers that did not reach every node."""

    def keep(self, item: Transfer) -> None:
        if not item.complete:
            super().keep(item)


def repair(
    target: OnlyCluster = "",
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE…]",
            help="Files or directories that all nodes should have (default: everything that any node has).",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="A key that all nodes should have; can be repeated.", show_default=False),
    ] = None,
    trust_log: Annotated[
        bool, typer.Option("--trust-log", help="Trust the location log instead of asking every node about every key.")
    ] = False,
    dry_run: DryRun = False,
    jobs: Annotated[int, typer.Option("--jobs", "-J", min=1, max=100, help="Simultaneous transfers.")] = 2,
    timeout: NodeTimeout = None,
    as_json: Json = False,
) -> None:
    """Copy content to the nodes that lack it, and record the new copies.

    Uses this repository's own copy if there is one; otherwise downloads the content from a node that has it. Verifies
    every upload by asking the node. Leaves nodes with preferred or required content to git annex sync --content. Never
    removes anything.

    Exit codes: 0 no node lacks anything now, 1 some still do, 2 wrong usage, 3 no node answers, 4 not in a
    repository, 130 interrupted.

    Example: cluster-remote repair mycluster --dry-run
    """

    name, below = cluster_and_files(target, files or [])
    selection = selection_of(below, key or [], not (below or key))

    def work(shown: bool, tell: Callable[[Transfer], None]) -> Coroutine[Any, Any, Repair]:
        return _repair(name, selection, trust_log, dry_run, jobs, timeout, shown, tell)

    if as_json:
        outcome = print_json(work, "deliveries")
    else:
        shown = _Incomplete()
        outcome = run(work, True, shown.keep)
        _show(outcome, run(_with_files, shown.first), shown.hidden, console())
    exit_if_unhealthy(outcome)


async def _with_files(transfers: Sequence[Transfer]) -> list[Transfer]:
    """Add file names to transfers that only have keys."""
    nameless = {transfer.key for transfer in transfers if transfer.file is None}
    names: dict[Key, str] = {}
    repository = await Repository.find()
    if nameless and repository.work_tree is not None:
        async with located(repository, Selection()) as batches:
            async for batch in batches:
                names.update({each.key: each.file for each in batch if each.key in nameless and each.file is not None})
    return [replace(each, file=each.file or names.get(each.key)) for each in transfers]


class _TransferProgress:
    """A progress line for the bytes transferred."""

    def __init__(self, lines: ProgressLines) -> None:
        self._lines = lines
        self._positions: dict[Key, int] = {}
        self._total = 0

    def moved(self, key: Key, position: int) -> None:
        if not self._positions:
            self._lines.begin("copied", 0, in_bytes=True)
        if key not in self._positions:
            self._total += key.content_size or 0
            self._lines.total("copied", self._total)
        before = self._positions.get(key, 0)
        self._positions[key] = max(before, position)
        self._lines.advance("copied", max(0, position - before))


async def _repair(
    target: str,
    selection: Selection,
    trust_log: bool,
    dry_run: bool,
    jobs: int,
    timeout: float | None,
    shown: bool,
    tell: Callable[[Transfer], None],
) -> Repair:
    view, cipher = view_of_nodes(await cluster_view(target, timeout, writing=not dry_run))
    with progress(unit="keys", shown=shown) as lines:
        await progress_of(view, selection, lines)

        return await repairing.repair(
            view,
            selection,
            trust_log=trust_log,
            dry_run=dry_run,
            jobs=jobs,
            tell=tell,
            advance=partial(advanced, lines),
            moved=_TransferProgress(lines).moved,
            cipher=cipher,
        )


def _show(outcome: Repair, first: list[Transfer], hidden: int, console: Console) -> None:
    titles = {node.uuid: node.title for node in outcome.nodes}
    show_first([_in_words(transfer, titles, outcome.dry_run) for transfer in first], hidden, console)
    columns = ["node", "lacks" if outcome.dry_run else "lacked", "bytes", "has now", "unknown"]
    rows = [
        (node.title, f"{node.lacked:,}", size(node.lacked_size), f"{node.stored:,}", f"{node.unknown:,}")
        for node in outcome.nodes
    ]
    console.print(table(columns, rows, right=columns[1:]))
    console.print()
    console.print(f"{outcome.keys:,} keys in {duration(outcome.seconds)}")
    if outcome.recorded:
        console.print(f"recorded in the location log: {outcome.recorded:,} copies that nodes already had")
    for node in outcome.nodes:
        if node.has_preferred_content:
            console.print(
                f"{printable(node.title)} has preferred or required content; git annex sync --content brings it "
                "what it wants"
            )
    show_problems(outcome.problems, console)
    if outcome.healthy:
        console.print(Text("No node lacks anything.", style="green"))
    elif outcome.dry_run:
        console.print("Nothing has been done (--dry-run).")


def _in_words(transfer: Transfer, titles: Mapping[UUID, str], dry_run: bool) -> str:
    left = [printable(titles[uuid]) for uuid in transfer.lacking if uuid not in transfer.stored]
    name = printable(transfer.file or transfer.key.text)
    if dry_run and transfer.source is not None:
        where = "here" if transfer.source == "here" else "the nodes that have it"
        return f"{name}: {size(transfer.key.content_size)} would go from {where} to {', '.join(left)}"
    return f"{name}: still lacking on {', '.join(left)}: {'; '.join(map(printable, transfer.reasons)) or 'not stored'}"
