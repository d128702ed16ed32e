"""Showing a plan, asking, and carrying it out: the same for every command that changes a cluster."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.repository import Repository
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.render import say
from cluster_remote.lifecycle.facts import Facts
from cluster_remote.lifecycle.steps import Plan, Runner, carry_out
from cluster_remote.p2p.text import visible

__all__ = ["DryRun", "Yes", "execute", "facts_of", "here", "in_repository"]

DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Show what would be done, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def here() -> Runner:
    """What runs commands in the repository that we stand in, and shows them. Raises NotARepository, NotInitialised."""
    repository = Repository.here()
    # Asked for before anything else.
    _ = repository.uuid
    return in_repository(repository)


def in_repository(repository: Repository) -> Runner:
    """What runs commands in a repository, which need not be one of git-annex yet, and shows them."""
    return Runner(repository, _say)


def facts_of(runner: Runner) -> Facts:
    """What the repository is like now. Raises AnnexError."""
    return run(Facts.read, runner.repository)


def _say(line: str) -> None:
    say(line, bold=line.startswith("$ "))
    # The command's own output comes next.
    sys.stdout.flush()


def execute(plan: Plan, runner: Runner, dry_run: bool, yes: bool, *, may_wait: bool = False) -> bool:
    """Shows a plan, asks where that is due, and carries it out. Whether it has been carried out.

    `may_wait`: where nobody can be asked, remotes are made without telling git-annex that they are safe. Raises
    BadSettings, AnnexError, typer.Abort.
    """
    for note in plan.notes:
        runner.say(note)
    if dry_run:
        for line in (*plan.shown(), *plan.questions):
            runner.say(line)
        runner.say("Nothing has been done (--dry-run).")
        return False
    person = sys.stdin.isatty() and sys.stdout.isatty()
    waiting: tuple[str, ...] = ()
    if plan.questions and not yes:
        if person:
            for question in plan.questions:
                typer.confirm(visible(question), abort=True)
        elif may_wait:
            waiting = plan.verifying
            for question in plan.questions:
                runner.say(question)
            plan = plan.unverified
        else:
            raise BadSettings(f"{' '.join(plan.questions)} Nobody can be asked here: look at it, then add --yes")
    elif plan.shares and person and not yes:
        for line in plan.shown():
            runner.say(line)
        typer.confirm("This writes to the git-annex branch, which others share. Go on?", default=True, abort=True)
    run(carry_out, plan, runner)
    if waiting:
        runner.say(
            f"git-annex stores nothing on {', '.join(waiting)} before you have said that this is safe: add --yes"
        )
    return True
