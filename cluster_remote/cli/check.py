"""cluster-remote check: compare what every node has with the location log."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.locations import Selection
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
from cluster_remote.cli.options import Json, NodeTimeout, OnlyCluster
from cluster_remote.cli.progress import progress
from cluster_remote.cli.render import console, duration, show_problems, size, table
from cluster_remote.cli.target import cluster_view
from cluster_remote.diagnosis import checking
from cluster_remote.diagnosis.comparison import Check, Finding
from cluster_remote.diagnosis.content import Options
from cluster_remote.diagnosis.encrypted import view_of_nodes
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import printable

__all__ = ["check"]


def check(
    target: OnlyCluster = "",
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE…]",
            help="Files or directories (default: the current directory).",
            show_default=False,
        ),
    ] = None,
    key: Annotated[list[str] | None, typer.Option(help="A key; can be repeated.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Check every key in the location log.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Correct the location log.")] = False,
    content: Annotated[
        bool, typer.Option("--content", help="Also read the nodes' copies and verify their checksums.")
    ] = False,
    resume: Annotated[bool, typer.Option("--continue", help="With --content: resume an interrupted check.")] = False,
    move_aside: Annotated[
        bool,
        typer.Option(
            "--move-aside",
            help="With --content --fix: have git-annex move damaged copies to .git/annex/bad, on nodes that are "
            "directories on this machine.",
        ),
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-J", min=1, max=100, help="Sessions per node.")] = 2,
    timeout: NodeTimeout = None,
    as_json: Json = False,
) -> None:
    """Ask every node what it has, and compare that with the location log.

    Reports what nodes lack although the log says they have it, what they have although the log does not say so, and
    what has fewer copies than git annex numcopies requires (.gitattributes is ignored). A node that cannot be asked
    counts as unknown; nothing is recorded about it. --content also reads every copy, which takes as long as
    downloading it, and verifies its checksum; a damaged copy is recorded as missing only with --fix. The nodes of a
    remote with shared encryption and without a server are asked for their encrypted keys, which all of them should
    have; these have no checksum, so only git annex fsck --from verifies their content.

    Exit codes: 0 the log is right or was corrected, 1 it is wrong, 2 wrong usage, 3 no node answers,
    4 not in a repository, 130 interrupted.

    Example: cluster-remote check mycluster --all --fix
    """

    if move_aside and not (content and fix):
        raise BadSettings("--move-aside requires --content --fix")
    if resume and not content:
        raise BadSettings("--continue requires --content")
    name, below = cluster_and_files(target, files or [])
    selection = selection_of(below, key or [], everything)
    options = Options(fix=fix, content=content, resume=resume, move_aside=move_aside, jobs=jobs)

    def work(shown: bool, tell: Callable[[Finding], None]) -> Coroutine[Any, Any, Check]:
        return _check(name, selection, options, timeout, shown, tell)

    if as_json:
        outcome = print_json(work, "findings")
    else:
        shown: FirstFindings[Finding] = FirstFindings()
        outcome = run(work, True, shown.keep)
        _show(outcome, shown.first, shown.hidden, console())
    exit_if_unhealthy(outcome)


async def _check(
    target: str,
    selection: Selection,
    options: Options,
    timeout: float | None,
    shown: bool,
    tell: Callable[[Finding], None],
) -> Check:
    view, cipher = view_of_nodes(await cluster_view(target, timeout, writing=options.fix))
    with progress(unit="keys", shown=shown) as lines:
        await progress_of(view, selection, lines)
        return await checking.check(
            view,
            selection,
            options,
            tell=tell,
            advance=partial(advanced, lines),
            read=lambda node, note: lines.note(str(node), note),
            cipher=cipher,
        )


def _show(outcome: Check, first: list[Finding], hidden: int, console: Console) -> None:
    titles = {node.uuid: node.title for node in outcome.nodes}
    show_first([_in_words(finding, titles, outcome.numcopies) for finding in first], hidden, console)
    rows = [
        (node.title, f"{node.present:,}", f"{node.missing:,}", f"{node.unlogged:,}", f"{node.unknown:,}")
        for node in outcome.nodes
    ]
    columns = ("node", "has", "missing", "not in the log", "unknown")
    console.print(table(columns, rows, right=columns[1:]))
    console.print()
    rate = f", {outcome.keys / outcome.seconds:,.0f} a second" if outcome.seconds > 1 else ""
    console.print(f"{outcome.keys:,} keys in {duration(outcome.seconds)}{rate}")
    if outcome.gone:
        console.print(f"{outcome.gone:,} of them are on no node, and the log lists none")
    if outcome.content:
        console.print(f"{outcome.read:,} copies read and verified, {size(outcome.read_size)}")
    if outcome.unverifiable:
        console.print(f"{outcome.unverifiable:,} copies have no checksum to verify")
    if outcome.recorded:
        console.print(f"corrected in the location log: {outcome.recorded:,} keys")
    if outcome.problems:
        show_problems(outcome.problems, console)
    else:
        right = "Every node has everything." if outcome.encrypted else "The location log is right."
        console.print(Text(right, style="green"))


def _in_words(finding: Finding, titles: Mapping[UUID, str], needed: int) -> str:
    words: list[str] = []
    if finding.missing:
        said = "" if finding.key.is_encrypted else ", though the location log says so"
        words.append(f"not on {_names(finding.missing, titles)}{said}")
    if finding.unlogged:
        words.append(f"on {_names(finding.unlogged, titles)}, but not in the location log")
    if finding.damaged:
        words.append(f"damaged on {_names(finding.damaged, titles)}")
    if finding.moved:
        words.append(f"moved aside on {_names(finding.moved, titles)}")
    if finding.few:
        words.append(f"{finding.copies} of {needed} copies")
    if finding.recorded:
        words.append("recorded")
    return f"{printable(finding.file or finding.key.text)}: {'; '.join(words)}"


def _names(uuids: tuple[UUID, ...], titles: Mapping[UUID, str]) -> str:
    return ", ".join(printable(titles[uuid]) for uuid in uuids)
