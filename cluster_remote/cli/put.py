"""cluster-remote put: store content on a server or node."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer
from rich.console import Console

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.contents import associated_file, content_of
from cluster_remote.annex.repository import Repository
from cluster_remote.cli.exitcodes import FAILED
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.options import Json, NameOrUrl, Timeout
from cluster_remote.cli.progress import progress
from cluster_remote.cli.render import duration, emit, size
from cluster_remote.cli.requesting import (
    Node,
    Record,
    described_and_recorded,
    key_named,
    names_of,
    path_exists,
    recorder_of,
    show_recorded,
    shown_progress,
)
from cluster_remote.cli.target import connected
from cluster_remote.diagnosis import request
from cluster_remote.diagnosis.request import Uploaded
from cluster_remote.p2p.key import AssociatedFile, Key
from cluster_remote.p2p.text import printable

__all__ = ["put"]


def put(
    target: NameOrUrl,
    file: Annotated[
        str, typer.Argument(metavar="[FILE]", help="An annexed file of this repository.", show_default=False)
    ] = "",
    key: Annotated[str, typer.Option("--key", metavar="KEY", help="The key to store.", show_default=False)] = "",
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="PATH",
            help="With --key: the file with its content (default: this repository's copy).",
            show_default=False,
        ),
    ] = "",
    node: Node = "",
    record: Record = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Store content on a server, or on one node behind it. Usually you want git annex copy, which also records it.

    Exit codes: 0 stored or already there, 1 not stored, 2 wrong usage, 3 no answer, 4 not in a repository,
    130 interrupted.

    Example: cluster-remote put mycluster photo.jpg

    Example: cluster-remote put ssh://nas.local/srv/annex --key WORM-s5--hello --from /tmp/hello
    """
    if bool(file) == bool(key):
        raise BadSettings("give either an annexed FILE, or --key KEY with --from PATH")
    if source and not key:
        raise BadSettings("--from PATH requires --key KEY; a FILE has its own content")
    outcome = run(_put, target, file, key, source, node, record, timeout)
    emit(outcome, as_json, _show_upload)
    if not outcome.stored:
        raise typer.Exit(FAILED)


async def _put(
    text: str, file: str, key_text: str, source: str, node: str, record: bool, timeout: float | None
) -> Uploaded:
    name = AssociatedFile()
    if file:
        if not path_exists(file):
            raise BadSettings(f"there is no file {file!r}; to store a key, give --key KEY --from PATH")
        key, repository = await key_named(file)
        assert repository is not None
        name = associated_file(repository, file)
        path = await content_of(repository, key)
    else:
        try:
            key = Key(key_text)
        except ValueError as error:
            raise BadSettings(f"--key: {error}") from None
        path = os.fsencode(source) if source else await content_of(await Repository.find(), key)
    async with connected(text, node, timeout, writing=True) as target:
        settings = target.view.settings
        if settings is not None and settings.encryption != "none":
            raise BadSettings(
                f"{settings.name} is encrypted, and this command would store the content unencrypted; git annex copy "
                f"--to {shlex.quote(settings.name)} encrypts it"
            )
        recorder = recorder_of(target, record)
        with progress(in_bytes=True) as lines:
            lines.begin(target.label, key.content_size)
            outcome = await request.upload(
                target.session, target.label, key, name, path, shown_progress(lines, target.label)
            )
    return await described_and_recorded(outcome, target, recorder, present=True, whole=outcome.stored)


def _show_upload(outcome: Uploaded, console: Console) -> None:
    if outcome.already_present:
        console.print(f"{outcome.target}: has {outcome.key} already")
    elif outcome.stored:
        console.print(
            f"{outcome.target}: stored {outcome.key} ({size(outcome.size)} in {duration(outcome.seconds)}), "
            f"protocol version {outcome.version}"
        )
    else:
        console.print(f"{outcome.target}: did not store {outcome.key}")
    if outcome.uuids:
        console.print(f"on: {names_of(outcome.uuids, outcome.descriptions)}")
    for reason in outcome.reasons:
        console.print(f"because: {printable(reason)}")
    show_recorded(outcome.recorded, outcome.descriptions, console)
