"""What `check` and `repair` share: key selection, progress per node, and findings that arrive one by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import typer
from rich.console import Console

from cluster_remote.access.configuration import our_remotes
from cluster_remote.access.settings import BadSettings
from cluster_remote.access.view import View
from cluster_remote.annex.locations import Selection, estimate
from cluster_remote.cli.exitcodes import FAILED, UNREACHABLE
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.progress import ProgressLines
from cluster_remote.cli.render import JsonStream
from cluster_remote.cli.target import annex_repository
from cluster_remote.cluster.node import Node
from cluster_remote.p2p.key import Key

if TYPE_CHECKING:
    from cluster_remote.diagnosis.comparison import Check
    from cluster_remote.diagnosis.repairing import Repair

__all__ = [
    "FirstFindings",
    "advanced",
    "cluster_and_files",
    "exit_if_unhealthy",
    "print_json",
    "progress_of",
    "selection_of",
    "show_first",
]

T = TypeVar("T")
Item = TypeVar("Item")

# The most findings to show; --json has all of them.
_MOST_SHOWN = 50


@dataclass
class FirstFindings(Generic[Item]):
    """The first findings, and the number of the others."""

    first: list[Item] = field(default_factory=list)
    hidden: int = 0

    def keep(self, item: Item) -> None:
        if len(self.first) < _MOST_SHOWN:
            self.first.append(item)
        else:
            self.hidden += 1


def show_first(lines: Sequence[str], hidden: int, console: Console) -> None:
    """Print the first findings, one per line, and the number of the others."""
    for line in lines:
        console.print(line)
    if hidden:
        console.print(f"… and {hidden:,} more; --json shows all of them")
    if lines:
        console.print()


def exit_if_unhealthy(outcome: Check | Repair) -> None:
    """Exit with the code for a wrong state, or for nodes of which none answers."""
    if not outcome.healthy:
        no_answer = all(node.unknown == outcome.keys for node in outcome.nodes)
        raise typer.Exit(UNREACHABLE if outcome.keys and no_answer else FAILED)


def print_json(work: Callable[[bool, Callable[[Any], None]], Coroutine[Any, Any, T]], items: str) -> T:
    """Run `work` and print its outcome as JSON, writing each finding into the field `items` immediately."""
    stream = JsonStream()
    with stream.items(items) as add:
        outcome = run(work, False, add)
    for each in fields(outcome):  # type: ignore[arg-type]
        if each.name != items:
            stream.field(each.name, getattr(outcome, each.name))
    stream.close()
    return outcome


def cluster_and_files(target: str, files: Sequence[str]) -> tuple[str, list[str]]:
    """Return the cluster remote and the files; a repository's only cluster need not be named.

    Raises BadSettings, NotARepository, NotInitialised.
    """
    repository = annex_repository()
    config = repository.config()
    names = our_remotes(config)
    if target in names or (target and not _is_file_here(target, repository.work_tree)):
        return target, list(files)
    clusters = [name for name in names if (uuid := config.remote_uuid(name)) is not None and uuid.is_cluster]
    found = clusters or names
    if not found:
        raise BadSettings("this repository has no cluster remote; cluster-remote setup NAME URL makes one")
    if len(found) > 1:
        raise BadSettings(f"this repository has several cluster remotes; name one: {', '.join(found)}")
    return found[0], [target, *files] if target else list(files)


def _is_file_here(path: str, work_tree: Path | None) -> bool:
    """Return whether a path is in the work tree; a gateway's directory, which is an address, is not."""
    if work_tree is None:
        return os.path.lexists(path)
    # Or its directory is, since annexed files are symlinks.
    paths = (os.path.realpath(path), os.path.realpath(Path(path).absolute().parent))
    return os.path.lexists(path) and any(Path(each).is_relative_to(os.path.realpath(work_tree)) for each in paths)


def selection_of(files: Sequence[str], keys: Sequence[str], everything: bool) -> Selection:
    """Return what a command line selects. Raises BadSettings."""
    if everything and (files or keys):
        raise BadSettings("--all covers every key: leave out either --all, or the files and --key")
    try:
        return Selection(everything, tuple(map(Key, keys)), tuple(files))
    except ValueError as error:
        raise BadSettings(f"--key: {error}") from None


async def progress_of(view: View, selection: Selection, lines: ProgressLines) -> None:
    """Start a progress line for each node that a selection concerns."""
    total = None
    if lines.shown and view.repository is not None:
        total = await estimate(view.repository, selection)
    for node in view.living:
        lines.begin(str(node), total)


def advanced(lines: ProgressLines, node: Node, count: int, answers: bool) -> None:
    """Advance a node's progress line."""
    if answers:
        lines.advance(str(node), count)
    else:
        lines.gone(str(node))
