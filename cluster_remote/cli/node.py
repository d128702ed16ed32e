"""cluster-remote node: add, remove and replace nodes of this repository's clusters."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cluster_remote.access.settings import BadSettings
from cluster_remote.cli.completion import candidates, nodes, remotes
from cluster_remote.cli.execution import execute, facts_of, runner_here
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.options import DryRun, Yes
from cluster_remote.lifecycle.changing import OwnCluster, node_named, own_cluster, plan_add, plan_remove, remote_of
from cluster_remote.lifecycle.facts import Facts
from cluster_remote.lifecycle.runner import Runner
from cluster_remote.p2p.text import as_command

__all__ = ["app"]

app = typer.Typer(
    name="node",
    help="Add, remove and replace nodes of this repository's clusters.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The cluster: its remote or its own name.", autocompletion=remotes),
]
Node = Annotated[str, typer.Argument(metavar="NODE", help="A remote, a description or a UUID.", autocompletion=nodes)]
Dead = Annotated[bool, typer.Option("--dead", help="Mark the old node as dead in git-annex, for everybody.")]


@app.command()
def add(
    name: Name,
    remote: Annotated[
        list[str], typer.Argument(metavar="REMOTE…", help="Remotes of this repository.", autocompletion=candidates)
    ],
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Add remotes of this repository to a cluster as nodes.

    Example: cluster-remote node add everywhere disk3
    """
    runner = runner_here()
    facts = facts_of(runner, remote)
    own = own_cluster(facts, name)
    if execute(plan_add(facts, own, list(dict.fromkeys(remote))), runner, dry_run, yes) and own.remote is not None:
        runner.say(f"To copy the others' content to it: {as_command('cluster-remote repair', own.remote)}")


@app.command()
def remove(
    name: Name,
    node: Node,
    drain: Annotated[
        bool,
        typer.Option("--drain", help="First copy its content to the others, then drop it there if numcopies allows."),
    ] = False,
    dead: Dead = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Remove a node from a cluster. Its content stays there and still counts as copies, unless --drain is given.

    Example: cluster-remote node remove everywhere disk2 --drain
    """
    runner = runner_here()
    facts = facts_of(runner)
    own = own_cluster(facts, name)
    uuid = node_named(facts, own, node)
    plan = plan_remove(facts, own, uuid, dead=dead)
    remote = remote_of(facts, uuid)
    if drain:
        _drain(facts, own, remote, runner, dry_run)
    if execute(plan, runner, dry_run, yes) and not drain and not dead:
        what = remote or uuid.text
        runner.say(
            f"Its content stays there and still counts as copies: {as_command('git annex info', what)} shows it."
        )


@app.command()
def replace(
    name: Name,
    old: Node,
    new: Annotated[str, typer.Argument(metavar="NEW", help="A remote of this repository.", autocompletion=candidates)],
    dead: Dead = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Replace a node by another repository: fill the new one first, then remove the old one.

    The old node may already be gone. Only --dead marks it as dead.

    Example: cluster-remote node replace everywhere disk2 disk3 --dead
    """
    runner = runner_here()
    facts = facts_of(runner, [new])
    own = own_cluster(facts, name)
    uuid = node_named(facts, own, old)
    first = plan_add(facts, own, [new])
    done = execute(first, runner, dry_run, yes)
    _fill(own, runner, dry_run)
    if done:
        facts = facts_of(runner)
    execute(plan_remove(facts, own, uuid, dead=dead), runner, dry_run, yes)


def _fill(own: OwnCluster, runner: Runner, dry_run: bool) -> None:
    """Run cluster-remote repair, to copy to every node what it lacks. Raises CommandFailed, BadSettings."""
    if own.remote is None:
        raise BadSettings(
            "nothing can be copied to the nodes without a remote: " + as_command("cluster-remote setup", own.name)
        )
    # --trust-log, so that an unreachable node does not keep the others from being filled.
    shown = as_command("cluster-remote repair", own.remote, options="--trust-log")
    if dry_run:
        runner.say(shown)
    else:
        words = ("repair", "--trust-log", "--", own.remote)
        run(runner.run, sys.executable, "-m", "cluster_remote", *words, shown=shown)


def _drain(facts: Facts, own: OwnCluster, remote: str | None, runner: Runner, dry_run: bool) -> None:
    if own.encrypted:
        raise BadSettings(
            "the contents there are encrypted, and no log says which ones it holds; fill another node first "
            "(cluster-remote node replace)"
        )
    if remote is None:
        raise BadSettings("it is not a remote of this repository, so nothing can be dropped from it")
    _fill(own, runner, dry_run)
    words = ("git", "annex", "drop", "--all", "--from", remote)
    if dry_run:
        runner.say(f"{' '.join(words)}")
    else:
        run(runner.run, *words)
