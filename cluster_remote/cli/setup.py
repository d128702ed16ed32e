"""cluster-remote setup: a remote for a cluster, and all that belongs to it, in one command."""

from __future__ import annotations

import typer

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.errors import AnnexError, NotInitialised
from cluster_remote.annex.gitconfig import ask_git
from cluster_remote.annex.repository import Repository
from cluster_remote.cli.carrying_out import DryRun, Yes, execute, facts_of, here, in_repository
from cluster_remote.cli.completion import candidates, clusters, remotes
from cluster_remote.cli.interrupts import run
from cluster_remote.lifecycle.serverless import Request
from cluster_remote.lifecycle.setting_up import plan_setup, prepare
from cluster_remote.lifecycle.steps import Runner

__all__ = ["setup"]


def setup(
    name: str = typer.Argument(
        "",
        metavar="[NAME]",
        help="What the remote is to be called (default: the one that others share).",
        autocompletion=remotes,
    ),
    url: str = typer.Argument(
        "",
        metavar="[URL]",
        help="The gateway: /dir, ssh://host/dir, host:dir, unix:/path, tcp://host:port, or a git remote.",
    ),
    node: list[str] = typer.Option(
        [],
        "--node",
        metavar="REMOTE",
        help="Without a server: a remote of this repository that is to be a node.",
        autocompletion=candidates,
    ),
    cluster: str = typer.Option("", help="Which of several clusters, by name or UUID.", autocompletion=clusters),
    tracking: str = typer.Option("nodes", help="nodes: each node counts as a copy. remote: the remote counts as one."),
    encryption: str = typer.Option("none", help="With --tracking remote: git-annex's encryption, such as shared."),
    chunk: str = typer.Option("", help="With --tracking remote: the size of chunks, such as 1MiB."),
    share: bool = typer.Option(False, "--share", help="Keep the configuration in the git-annex branch, for everybody."),
    autoenable: bool = typer.Option(
        False, "--autoenable", help="Share it so that every clone has it at once, and can get from it."
    ),
    nodes: bool = typer.Option(
        True,
        "--nodes/--no-nodes",
        help="A remote NAME-NODE for every node, so that the copies there can be verified one by one.",
    ),
    timeout: float = typer.Option(None, help="Seconds without progress before the remote gives up (default 60)."),
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Make a remote for a cluster, join one, or mend it: running it again is harmless.

    Everything is checked first, each git-annex command is shown, and if one fails what was done before it is undone.
    Without a URL the nodes are remotes of this repository and no server is needed; without either, the name of a remote
    that others share, or of a cluster that this repository knows, is enough.

    Example: cluster-remote setup mycluster ssh://nas.local/srv/annex

    Example: cluster-remote setup mycluster --node disk1 --node nas
    """
    if tracking not in {"nodes", "remote"}:
        raise BadSettings(f"--tracking {tracking}: it can be nodes or remote")
    if tracking == "nodes" and (encryption != "none" or chunk):
        raise BadSettings(
            "encrypted or chunked content on the nodes is no copy that this repository could count; add "
            "--tracking remote"
        )
    if autoenable and tracking == "remote":
        raise BadSettings("--autoenable is for a cluster whose nodes are the copies; leave --tracking remote out")
    if url and node:
        raise BadSettings(
            "give either the URL of a gateway, or --node REMOTE for each remote of this repository that is to be a node"
        )
    parameters = {"encryption": encryption, "chunk": chunk}
    if timeout is not None:
        parameters["timeout"] = f"{timeout:g}"
    if tracking == "remote":
        parameters["tracking"] = "remote"
    given = {key: value for key, value in parameters.items() if value}
    request = Request(name, url, tuple(dict.fromkeys(node)), cluster, given, share, nodes, autoenable)
    runner = here_in_a_clone()
    first = prepare(facts_of(runner), request)
    if first.steps and not execute(first, runner, dry_run, yes):
        return
    # Somebody who names what others share is shown it; without an answer it is made, and git-annex does not use it yet.
    by_name = not url and not node
    execute(run(plan_setup, facts_of(runner), request, runner), runner, dry_run, yes, may_wait=by_name)
    if runner.failed:
        raise AnnexError(
            f"there is no remote for {', '.join(runner.failed)}, so that the copies there cannot be verified; why is "
            "above. When that is mended, run this again. What is gone for good is left out after git annex dead"
        )


def here_in_a_clone() -> Runner:
    """As `here`; in a clone of a repository of git-annex, git annex init is run first where nobody has done that."""
    try:
        return here()
    except NotInitialised:
        repository = Repository.here()
        branches = ask_git("for-each-ref", "--format=%(refname)", cwd=repository.cwd, env=repository.environment())
        if not any(line.endswith(b"/git-annex") for line in branches.splitlines()):
            raise
        run(in_repository(repository).run, "git", "annex", "init")
        return here()
