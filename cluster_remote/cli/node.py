"""cluster-remote node: add, take out and replace the nodes of a cluster of this repository."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cluster_remote.access.settings import BadSettings
from cluster_remote.cli.carrying_out import DryRun, Yes, execute, facts_of, here
from cluster_remote.cli.completion import candidates, nodes, remotes
from cluster_remote.cli.interrupts import run
from cluster_remote.lifecycle.changing import Own, node_called, own_cluster, plan_add, plan_remove, remote_of
from cluster_remote.lifecycle.facts import Facts
from cluster_remote.lifecycle.steps import Runner

__all__ = ["app"]

app = typer.Typer(
    name="node",
    help="Add, take out and replace nodes of a cluster of this repository.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The cluster: its remote, or its own name.", autocompletion=remotes),
]
Node = Annotated[str, typer.Argument(metavar="NODE", help="A remote, a description or a UUID.", autocompletion=nodes)]
Dead = Annotated[bool, typer.Option("--dead", help="Tell git-annex that the old one is gone for good, for everybody.")]


@app.command()
def add(
    name: Name,
    remote: Annotated[
        list[str], typer.Argument(metavar="REMOTE…", help="Remotes of this repository.", autocompletion=candidates)
    ],
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Make remotes of this repository nodes of a cluster.

    Example: cluster-remote node add everywhere disk3
    """
    runner = here()
    facts = facts_of(runner)
    own = own_cluster(facts, name)
    if execute(plan_add(facts, own, list(dict.fromkeys(remote))), runner, dry_run, yes) and own.remote is not None:
        runner.say(f"To bring it what the others have: cluster-remote repair {own.remote}")


@app.command()
def remove(
    name: Name,
    node: Node,
    drain: Annotated[
        bool,
        typer.Option("--drain", help="First bring what it has to the others, and drop it there as numcopies allows."),
    ] = False,
    dead: Dead = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Take a node out of a cluster. What it holds stays there, and counts as copies, unless --drain is given.

    Example: cluster-remote node remove everywhere disk2 --drain
    """
    runner = here()
    facts = facts_of(runner)
    own = own_cluster(facts, name)
    uuid = node_called(facts, own, node)
    plan = plan_remove(facts, own, uuid, dead=dead)
    remote = remote_of(facts, uuid)
    if drain:
        _drain(facts, own, remote, runner, dry_run)
    if execute(plan, runner, dry_run, yes) and not drain and not dead:
        what = remote or uuid.text
        runner.say(f"What it holds stays there, and git-annex goes on counting it: git annex info {what} shows it.")


@app.command()
def replace(
    name: Name,
    old: Node,
    new: Annotated[str, typer.Argument(metavar="NEW", help="A remote of this repository.", autocompletion=candidates)],
    dead: Dead = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Have another repository take the place of a node: it is filled first, then the old one is taken out.

    The old one need not be there any more. It is told to be dead only with --dead.

    Example: cluster-remote node replace everywhere disk2 disk3 --dead
    """
    runner = here()
    facts = facts_of(runner)
    own = own_cluster(facts, name)
    uuid = node_called(facts, own, old)
    first = plan_add(facts, own, [new])
    done = execute(first, runner, dry_run, yes)
    _fill(own, runner, dry_run)
    if done:
        facts = facts_of(runner)
    execute(plan_remove(facts, own, uuid, dead=dead), runner, dry_run, yes)


def _fill(own: Own, runner: Runner, dry_run: bool) -> None:
    """Brings every node what it lacks, with the command for that. Raises CommandFailed, BadSettings."""
    if own.remote is None:
        raise BadSettings(f"nothing can be brought to the nodes without a remote: cluster-remote setup {own.name}")
    # By the log: a node that is away keeps nobody from being filled.
    words = ("repair", own.remote, "--trust-log")
    if dry_run:
        runner.say(f"cluster-remote {' '.join(words)}")
    else:
        run(runner.run, sys.executable, "-m", "cluster_remote", *words, shown=f"cluster-remote {' '.join(words)}")


def _drain(facts: Facts, own: Own, remote: str | None, runner: Runner, dry_run: bool) -> None:
    if own.hidden:
        raise BadSettings(
            "the contents there are encrypted, and no log says which copies they are; fill another node first "
            "(cluster-remote node replace)"
        )
    if remote is None:
        raise BadSettings("it is no remote of this repository, so that nothing can be dropped there")
    _fill(own, runner, dry_run)
    words = ("git", "annex", "drop", "--all", "--from", remote)
    if dry_run:
        runner.say(f"{' '.join(words)}")
    else:
        run(runner.run, *words)
