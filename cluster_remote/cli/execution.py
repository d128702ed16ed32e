"""Show a plan, ask for confirmation, and carry it out: shared by all commands that change a cluster."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.repository import Repository
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.render import say
from cluster_remote.cli.target import annex_repository
from cluster_remote.lifecycle.facts import Facts
from cluster_remote.lifecycle.nodes import contacted
from cluster_remote.lifecycle.runner import Runner
from cluster_remote.lifecycle.steps import Plan, carry_out
from cluster_remote.p2p.text import few, visible

__all__ = ["execute", "facts_of", "runner_here", "runner_in"]


def runner_here() -> Runner:
    """Return a runner for the current repository that shows its commands. Raises NotARepository, NotInitialised."""
    return runner_in(annex_repository())


def runner_in(repository: Repository) -> Runner:
    """Return a runner that shows its commands, for a repository that need not be initialised by git-annex."""
    return Runner(repository, _say)


def facts_of(runner: Runner, nodes: Sequence[str] = ()) -> Facts:
    """Read the current state of the repository, including the UUIDs of `nodes`. Raises AnnexError, Unreachable."""
    return run(contacted, run(Facts.read, runner.repository), nodes)


def _say(line: str) -> None:
    say(line, bold=line.startswith("$ "))
    # Otherwise the command's own output could come first.
    sys.stdout.flush()


def execute(plan: Plan, runner: Runner, dry_run: bool, yes: bool, *, may_wait: bool = False) -> bool:
    """Show a plan, ask if needed, and carry it out. Return whether it was carried out.

    `may_wait`: without a terminal to ask on, create the remotes without telling git-annex that they are safe.
    Raises BadSettings, AnnexError, typer.Abort.
    """
    for note in plan.notes:
        runner.say(note)
    if dry_run:
        for line in (*plan.shown(), *plan.questions):
            runner.say(line)
        runner.say("Nothing has been done (--dry-run).")
        return False
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    waiting: tuple[str, ...] = ()
    if plan.questions and not yes:
        if interactive:
            for question in plan.questions:
                typer.confirm(visible(question), abort=True)
        elif may_wait:
            waiting = plan.verifying
            for question in plan.questions:
                runner.say(question)
            plan = plan.without_consent
        else:
            raise BadSettings(f"{' '.join(plan.questions)} There is no terminal to ask on: read it, then add --yes")
    elif plan.shares and interactive and not yes:
        for line in plan.shown():
            runner.say(line)
        typer.confirm("This writes to the git-annex branch, which others share. Continue?", default=True, abort=True)
    run(carry_out, plan, runner)
    if waiting:
        runner.say(f"git-annex stores nothing on {few(list(waiting))} until you confirm that it is safe: add --yes")
    return True
