"""cluster-remote setup: create a remote for a cluster, and all it needs, in one command."""

from __future__ import annotations

import typer

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.errors import AnnexError, NotInitialised
from cluster_remote.annex.gitconfig import ask_git
from cluster_remote.annex.repository import Repository
from cluster_remote.cli.completion import candidates, clusters, remotes
from cluster_remote.cli.execution import execute, facts_of, runner_here, runner_in
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.options import DryRun, Yes
from cluster_remote.lifecycle.runner import Runner
from cluster_remote.lifecycle.serverless import Request
from cluster_remote.lifecycle.setting_up import plan_setup, prepare
from cluster_remote.transport import FORMS

__all__ = ["setup"]


def setup(
    name: str = typer.Argument(
        "",
        metavar="[NAME]",
        help="Name of the remote (default: that of the shared one).",
        autocompletion=remotes,
    ),
    url: str = typer.Argument(
        "",
        metavar="[URL]",
        help=f"The gateway: {FORMS}, or a git remote.",
    ),
    node: list[str] = typer.Option(
        [],
        "--node",
        metavar="REMOTE",
        help="Without a server: a remote of this repository to use as a node. Can be repeated.",
        autocompletion=candidates,
    ),
    cluster: str = typer.Option("", help="Which of several clusters, by name or UUID.", autocompletion=clusters),
    tracking: str = typer.Option(
        "nodes", help="nodes: each node counts as a copy. remote: the whole cluster counts as one."
    ),
    encryption: str = typer.Option("none", help="With --tracking remote: git-annex encryption, such as shared."),
    chunk: str = typer.Option("", help="With --tracking remote: chunk size, such as 1MiB."),
    share: bool = typer.Option(
        False, "--share", help="Store the configuration in the git-annex branch, for everybody."
    ),
    autoenable: bool = typer.Option(
        False, "--autoenable", help="Share it so that every clone has the remote at once, and can get content from it."
    ),
    nodes: bool = typer.Option(
        True,
        "--nodes/--no-nodes",
        help="Create a remote NAME-NODE for every node, so that git-annex can verify each copy.",
    ),
    timeout: float = typer.Option(None, help="Seconds without progress before the remote gives up (default 60)."),
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Create a remote for a cluster, join one, or fix one: running it again is safe.

    Checks everything first, shows each git-annex command, and undoes its steps if one fails. Without a URL the nodes
    are remotes of this repository, and no server is needed. With neither URL nor nodes, NAME is a remote that others
    share, or a cluster that this repository knows.

    Example: cluster-remote setup mycluster ssh://nas.local/srv/annex

    Example: cluster-remote setup mycluster --node disk1 --node nas
    """
    if tracking not in {"nodes", "remote"}:
        raise BadSettings(f"--tracking {tracking}: choose nodes or remote")
    if tracking == "nodes" and (encryption != "none" or chunk):
        raise BadSettings("encrypted or chunked content on the nodes does not count as a copy; add --tracking remote")
    if autoenable and tracking == "remote":
        raise BadSettings("--autoenable requires that nodes count as copies; leave out --tracking remote")
    if url and node:
        raise BadSettings(
            "give either the URL of a gateway, or --node REMOTE for each remote of this repository to use as a node"
        )
    parameters = {"encryption": encryption, "chunk": chunk}
    if timeout is not None:
        parameters["timeout"] = f"{timeout:g}"
    if tracking == "remote":
        parameters["tracking"] = "remote"
    given = {key: value for key, value in parameters.items() if value}
    request = Request(name, url, tuple(dict.fromkeys(node)), cluster, given, share, nodes, autoenable)
    runner = runner_in_clone()
    first = prepare(facts_of(runner), request)
    if first.steps and not execute(first, runner, dry_run, yes):
        return
    # A shared configuration is shown first. Unconfirmed, the remote is created, but git-annex does not use it yet.
    by_name = not url and not node
    execute(run(plan_setup, facts_of(runner), request, runner), runner, dry_run, yes, may_wait=by_name)
    if runner.failed:
        raise AnnexError(
            f"no remote for {', '.join(runner.failed)} (the reason is above), so copies there cannot be verified. "
            "Fix it and run this again, or mark what is gone for good with git annex dead"
        )


def runner_in_clone() -> Runner:
    """Return a runner for the current repository; if it is a clone of an annex, run git annex init first if needed."""
    try:
        return runner_here()
    except NotInitialised:
        repository = Repository.here()
        branches = ask_git("for-each-ref", "--format=%(refname)", cwd=repository.cwd, env=repository.environment())
        if not any(line.endswith(b"/git-annex") for line in branches.splitlines()):
            raise
        run(runner_in(repository).run, "git", "annex", "init")
        return runner_here()
