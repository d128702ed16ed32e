"""cluster-remote drop: remove content from a server or node."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from cluster_remote.access.settings import BadSettings
from cluster_remote.cli.exitcodes import FAILED
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.options import Json, NameOrUrl, Timeout
from cluster_remote.cli.render import emit
from cluster_remote.cli.requesting import (
    KeyOrFile,
    Node,
    Record,
    described_and_recorded,
    key_named,
    names_of,
    recorder_of,
    show_recorded,
)
from cluster_remote.cli.target import connected
from cluster_remote.diagnosis import request
from cluster_remote.diagnosis.request import Dropped
from cluster_remote.p2p.text import printable

__all__ = ["drop"]


def drop(
    target: NameOrUrl,
    key: KeyOrFile,
    force: Annotated[
        bool, typer.Option("--force", help="Confirm removing it without checking for other copies. Required.")
    ] = False,
    node: Node = "",
    record: Record = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Remove content from a server, or from one node behind it, WITHOUT checking that other copies exist.

    Usually you want git annex drop --from, which checks for copies first. This command can remove the last copy, so it
    requires --force.

    Exit codes: 0 removed or not there, 1 not removed, or not everywhere, 2 wrong usage, 3 no answer,
    4 not in a repository, 130 interrupted.

    Example: cluster-remote drop mycluster photo.jpg --node nas --force
    """
    if not force:
        raise BadSettings(
            "this removes the content without checking for other copies, as git annex drop --from would; "
            "add --force to do it anyway"
        )
    outcome = run(_drop, target, key, node, record, timeout)
    emit(outcome, as_json, _show_removal)
    if not outcome.removed:
        raise typer.Exit(FAILED)


async def _drop(text: str, word: str, node: str, record: bool, timeout: float | None) -> Dropped:
    key, _ = await key_named(word)
    async with connected(text, node, timeout, writing=True) as target:
        recorder = recorder_of(target, record)
        request.check_legible(target.view.settings, key)
        outcome = await request.drop(target.session, target.label, key)
    return await described_and_recorded(outcome, target, recorder, present=False, whole=outcome.removed)


def _show_removal(outcome: Dropped, console: Console) -> None:
    if outcome.removed:
        console.print(f"{outcome.target}: no longer has {outcome.key}")
    else:
        console.print(f"{outcome.target}: did not remove {outcome.key}" + (" everywhere" if outcome.uuids else ""))
    if outcome.uuids:
        console.print(f"removed from: {names_of(outcome.uuids, outcome.descriptions)}")
    for reason in outcome.reasons:
        console.print(f"because: {printable(reason)}")
    show_recorded(outcome.recorded, outcome.descriptions, console)
