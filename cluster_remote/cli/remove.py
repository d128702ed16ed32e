"""cluster-remote rename and remove: rename a cluster remote, or remove it."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster_remote.cli.completion import remotes
from cluster_remote.cli.execution import execute, facts_of, runner_here
from cluster_remote.cli.options import DryRun, Yes
from cluster_remote.lifecycle.changing import plan_rename, plan_take_down

__all__ = ["remove", "rename"]


def rename(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A cluster remote.", autocompletion=remotes)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The new name.")],
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Rename a cluster remote, the remotes of its nodes, and its cluster if that has the same name.

    Example: cluster-remote rename everywhere photos
    """
    runner = runner_here()
    execute(plan_rename(facts_of(runner), old, new), runner, dry_run, yes)


def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A cluster remote.", autocompletion=remotes)],
    cluster: Annotated[bool, typer.Option("--cluster", help="Also take down the cluster of this repository.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Remove a cluster remote and the remotes of its nodes from this repository. Content is not touched.

    Example: cluster-remote remove everywhere --cluster
    """
    runner = runner_here()
    execute(plan_take_down(facts_of(runner), name, cluster=cluster), runner, dry_run, yes)
