"""cluster-remote check: does every node have what the location log says?"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated

import typer

from cluster_remote.access.settings import BadSettings
from cluster_remote.cli.completion import remotes
from cluster_remote.cli.exitcodes import FAILED, UNREACHABLE
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.render import JsonStream, Lines, console, duration, progress, show_problems, table
from cluster_remote.p2p.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Console

    from cluster_remote.annex.locations import Selection
    from cluster_remote.cluster.node import Node
    from cluster_remote.diagnosis.comparison import Check, Finding
    from cluster_remote.diagnosis.nodes import View
    from cluster_remote.p2p.key import UUID

__all__ = ["advanced", "check", "progress_of", "selection_of"]

# Findings that are shown to people; --json has all of them.
_SHOWN = 50


def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A cluster remote of this repository.", autocompletion=remotes, show_default=False
        ),
    ],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE…]",
            help="Files or directories (default: what is below the working directory).",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="A key; may be given several times.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every key that the location log knows.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Record in the location log what is true.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-J", min=1, max=100, help="Sessions with each node.")] = 2,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Seconds that a node may keep us waiting (default: that of the remote).", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object (docs/json.md).")] = False,
) -> None:
    """Ask every node itself what it has, and compare with the location log.

    Shows what nodes do not have although the log says so, what they have although the log does not say so, and what has
    fewer copies than git annex numcopies asks for (.gitattributes are not looked at). A node that cannot be asked is
    unknown; nothing is said or recorded about it. Contents are not transferred, nor their checksums compared.

    Exit codes: 0 all is as the log says, or is recorded now, 1 it is not, 2 wrong usage, 3 no node answers,
    4 not in a repository, 130 interrupted.

    Example: cluster-remote check mycluster --all --fix
    """

    selection = selection_of(files or [], key or [], everything)
    if as_json:
        outcome = _to_json(lambda tell: run(_check, target, selection, fix, jobs, timeout, False, tell))
    else:
        first: list[Finding] = []
        hidden = 0

        def keep(finding: Finding) -> None:
            nonlocal hidden
            if len(first) < _SHOWN:
                first.append(finding)
            else:
                hidden += 1

        outcome = run(_check, target, selection, fix, jobs, timeout, True, keep)
        _show(outcome, first, hidden, console())
    if not outcome.well:
        nobody = all(node.unknown == outcome.keys for node in outcome.nodes)
        raise typer.Exit(UNREACHABLE if outcome.keys and nobody else FAILED)


def selection_of(files: list[str], keys: list[str], everything: bool) -> Selection:
    """What a command line selects. Raises BadSettings."""
    from cluster_remote.annex.locations import Selection
    from cluster_remote.p2p.key import Key

    if everything and (files or keys):
        raise BadSettings("--all is about every key; leave out the files and --key, or leave out --all")
    try:
        return Selection(everything, tuple(map(Key.parse, keys)), tuple(files))
    except ValueError as error:
        raise BadSettings(f"--key: {error}") from None


async def _check(
    target: str,
    selection: Selection,
    fix: bool,
    jobs: int,
    timeout: float | None,
    shown: bool,
    tell: Callable[[Finding], None],
) -> Check:
    from cluster_remote.cli.viewing import view_of
    from cluster_remote.diagnosis import checking

    view = await view_of(target, timeout)
    with progress(unit="keys", shown=shown) as lines:
        await progress_of(view, selection, lines)
        return await checking.check(
            view,
            selection,
            fix=fix,
            jobs=jobs,
            tell=tell,
            advance=lambda node, count, answers: advanced(lines, node, count, answers),
        )


def advanced(lines: Lines, node: Node, count: int, answers: bool) -> None:
    """Shows how far a node is."""
    if answers:
        lines.advance(str(node), count)
    else:
        lines.gone(str(node))


async def progress_of(view: View, selection: Selection, lines: Lines) -> None:
    """A line for each node that is going to be asked about a selection."""
    from cluster_remote.annex.locations import estimate

    total = None
    if lines.shown and view.repository is not None:
        total = await estimate(view.repository, selection)
    for node in view.living:
        lines.begin(str(node), total)


def _to_json(run: Callable[[Callable[[object], None]], Check]) -> Check:
    stream = JsonStream()
    with stream.items("findings") as add:
        outcome = run(add)
    for each in fields(outcome):
        if each.name != "findings":
            stream.field(each.name, getattr(outcome, each.name))
    stream.close()
    return outcome


def _show(outcome: Check, first: list[Finding], hidden: int, console: Console) -> None:
    from rich.text import Text

    titles = {node.uuid: node.title for node in outcome.nodes}
    for finding in first:
        console.print(_in_words(finding, titles, outcome.numcopies))
    if hidden:
        console.print(f"… and {hidden:,} more; --json shows all of them")
    if first:
        console.print()
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
        console.print(f"{outcome.gone:,} of them nobody has, and nobody is said to have")
    if outcome.recorded:
        console.print(f"recorded in the location log: what is true of {outcome.recorded:,} keys")
    if outcome.problems:
        show_problems(outcome.problems, console)
    else:
        console.print(Text("The location log is right.", style="green"))


def _in_words(finding: Finding, titles: Mapping[UUID, str], needed: int) -> str:
    words: list[str] = []
    if finding.missing:
        words.append(f"not on {_names(finding.missing, titles)}, though the location log says so")
    if finding.unlogged:
        words.append(f"on {_names(finding.unlogged, titles)}, which the location log does not know")
    if finding.few:
        words.append(f"{finding.copies} of {needed} copies")
    if finding.recorded:
        words.append("recorded")
    return f"{printable(finding.file or finding.key.text)}: {'; '.join(words)}"


def _names(uuids: tuple[UUID, ...], titles: Mapping[UUID, str]) -> str:
    return ", ".join(printable(titles[uuid]) for uuid in uuids)
