"""cluster-remote present: ask a server or node whether it has some content."""

from __future__ import annotations

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
    key_named,
    record_answer,
    recorder_of,
    show_recorded,
)
from cluster_remote.cli.target import connected
from cluster_remote.diagnosis import request
from cluster_remote.diagnosis.request import Presence

__all__ = ["present"]


def present(
    target: NameOrUrl,
    key: KeyOrFile,
    node: Node = "",
    record: Record = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Ask a server, or one node behind it, whether it has some content.

    A gateway answers for its cluster from its own location log; --node asks the node itself.

    Exit codes: 0 it has it, 1 it does not, 2 wrong usage, 3 no answer, 4 not in a repository, 130 interrupted.

    Example: cluster-remote present mycluster photo.jpg --node nas
    """
    outcome = run(_present, target, key, node, record, timeout)
    emit(outcome, as_json, _show_presence)
    if not outcome.present:
        raise typer.Exit(FAILED)


async def _present(text: str, word: str, node: str, record: bool, timeout: float | None) -> Presence:
    key, _ = await key_named(word)
    async with connected(text, node, timeout, writing=record) as target:
        recorder = recorder_of(target, record)
        if recorder and recorder.settings.tracking == "nodes" and recorder.settings.uuid.is_cluster and not node:
            raise BadSettings(
                "--record: a cluster does not say which of its nodes have the content; ask each with --node"
            )
        request.check_legible(target.view.settings, key)
        outcome = await request.present(target.session, target.label, key)
    return await record_answer(recorder, outcome, (), present=outcome.present)


def _show_presence(outcome: Presence, console: Console) -> None:
    console.print(f"{outcome.target}: {'has' if outcome.present else 'does not have'} {outcome.key}")
    show_recorded(outcome.recorded, {}, console)
