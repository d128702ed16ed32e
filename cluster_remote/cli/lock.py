"""cluster-remote lock: lock content on a server or node."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console

from cluster_remote.annex.repository import without_token
from cluster_remote.cli.exitcodes import FAILED, INTERRUPTED
from cluster_remote.cli.foreground import run_in_foreground, until_interrupted
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.options import Json, NameOrUrl, Timeout
from cluster_remote.cli.render import duration, emit, say
from cluster_remote.cli.requesting import (
    KeyOrFile,
    Node,
    key_named,
)
from cluster_remote.cli.target import connected
from cluster_remote.diagnosis import request
from cluster_remote.diagnosis.request import Locked

__all__ = ["lock"]


def lock(
    target: NameOrUrl,
    key: KeyOrFile,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND…]", help="Command to run meanwhile (default: wait for Ctrl-C).", show_default=False
        ),
    ] = None,
    node: Node = "",
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Lock content against removal while COMMAND runs, or until Ctrl-C.

    Only nodes and single repositories can lock content, never a cluster: name a node with --node.

    Exit codes: that of COMMAND (127: not found, 126: cannot be run); 130 if Ctrl-C ended it; 1 not locked,
    2 wrong usage, 3 no answer, or the lock was lost early, 4 not in a repository.

    Example: cluster-remote lock mycluster photo.jpg --node nas -- rsync -a nas:photos/ /mnt/photos/
    """
    outcome = run(_lock, target, key, command or [], node, timeout, quiet=as_json)
    emit(outcome, as_json, _show_lock)
    if not outcome.locked:
        raise typer.Exit(FAILED)
    raise typer.Exit(INTERRUPTED if outcome.exit_code is None else outcome.exit_code)


async def _lock(text: str, word: str, command: list[str], node: str, timeout: float | None, *, quiet: bool) -> Locked:
    key, _ = await key_named(word)
    async with connected(text, node, timeout) as target, request.lock(target.session, target.label, key) as outcome:
        if not outcome.locked:
            return outcome
        started = time.monotonic()
        say(f"{target.label}: {key} is locked" + ("" if command else "; Ctrl-C unlocks it"), err=True)
        if command:
            code = await run_in_foreground(command, env=without_token(), stdout_to_stderr=quiet)
        else:
            await until_interrupted()
            code = None
        return replace(outcome, held=time.monotonic() - started, exit_code=code)


def _show_lock(outcome: Locked, console: Console) -> None:
    if outcome.locked:
        console.print(f"{outcome.target}: {outcome.key} was locked for {duration(outcome.held)}")
    else:
        why = (
            "a cluster cannot lock content; name one of its nodes with --node"
            if outcome.server.is_cluster
            else "the server does not have it or cannot lock it"
        )
        console.print(f"{outcome.target}: {outcome.key} was not locked: {why}")
