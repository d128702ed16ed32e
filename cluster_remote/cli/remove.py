"""cluster-remote rename and remove: another name for a cluster, or its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster_remote.cli.carrying_out import execute, here
from cluster_remote.cli.completion import remotes
from cluster_remote.cli.interrupts import run

if TYPE_CHECKING:
    from cluster_remote.lifecycle.facts import Facts
    from cluster_remote.lifecycle.steps import Runner

__all__ = ["remove", "rename"]

DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Show what would be done, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def rename(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A cluster remote.", autocompletion=remotes)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="What it is to be called.")],
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Give a cluster remote another name, with the remotes of its nodes, and its cluster where that is called the same.

    Example: cluster-remote rename everywhere photos
    """
    from cluster_remote.lifecycle.changing import plan_rename

    runner = here()
    execute(plan_rename(run(_facts, runner), old, new), runner, dry_run, yes)


def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A cluster remote.", autocompletion=remotes)],
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Take down the cluster of this repository as well.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Take a cluster remote out of this repository, with the remotes of its nodes. No content is touched.

    Example: cluster-remote remove everywhere --cluster
    """
    from cluster_remote.lifecycle.changing import plan_take_down

    runner = here()
    execute(plan_take_down(run(_facts, runner), name, cluster=cluster), runner, dry_run, yes)


async def _facts(runner: Runner) -> Facts:
    from cluster_remote.lifecycle.facts import Facts

    return await Facts.read(runner.repository)
