"""What present, put, get, drop and lock share: their arguments, the session, and the record of an answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from cluster_remote.access.identity import not_recorded
from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.contents import key_of
from cluster_remote.annex.repository import Repository
from cluster_remote.cli.completion import nodes
from cluster_remote.cli.progress import ProgressLines
from cluster_remote.cli.render import say
from cluster_remote.cli.target import Target
from cluster_remote.diagnosis.request import Dropped, Presence, Recorder, Uploaded
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.text import printable

__all__ = [
    "KeyOrFile",
    "Node",
    "Record",
    "described_and_recorded",
    "key_named",
    "names_of",
    "path_exists",
    "record_answer",
    "recorder_of",
    "show_recorded",
    "shown_progress",
]

_Outcome = TypeVar("_Outcome", Presence, Uploaded, Dropped)
_Change = TypeVar("_Change", Uploaded, Dropped)

KeyOrFile = Annotated[
    str, typer.Argument(metavar="KEY|FILE", help="A key or an annexed file of this repository.", show_default=False)
]
Node = Annotated[
    str,
    typer.Option(
        "--node",
        metavar="UUID|NAME",
        help="Ask one node behind the server, by UUID, description or name.",
        autocompletion=nodes,
        show_default=False,
    ),
]
Record = Annotated[
    bool, typer.Option("--record", help="Record in the location log what the answer says about NAME's nodes.")
]


async def key_named(text: str) -> tuple[Key, Repository | None]:
    """Return the key that a word names, and the repository if the word is an annexed file."""
    if path_exists(text):
        repository = await Repository.find()
        return await key_of(repository, text), repository
    try:
        return Key(text), None
    except ValueError as error:
        raise BadSettings(f"there is no file {text!r} here, and {error}") from None


def path_exists(path: str | Path) -> bool:
    """Return whether a path exists, even as a dangling link: an annexed file without its content is one."""
    return os.path.lexists(path)


def names_of(uuids: Collection[UUID], descriptions: Mapping[str, str]) -> str:
    """Format the names of repositories for people."""
    return ", ".join(printable(descriptions.get(str(uuid), str(uuid))) for uuid in uuids)


def show_recorded(uuids: Collection[UUID], descriptions: Mapping[str, str], console: Console) -> None:
    """Print the repositories for which the location log was updated, if any."""
    if uuids:
        console.print(f"recorded in the location log: {names_of(uuids, descriptions)}")


def recorder_of(target: Target, record: bool) -> Recorder | None:
    """Return what records the answers of a target, if they are to be recorded. Raises BadSettings."""
    return Recorder.of(target.view, target.node) if record else None


async def record_answer(
    recorder: Recorder | None, outcome: _Outcome, named: Collection[UUID], *, present: bool, whole: bool = True
) -> _Outcome:
    """Record an answer, if there is a recorder, and warn about repositories that the remote is not trusted about."""
    if recorder is None:
        return outcome
    recorded, others = await recorder.record(outcome.key, outcome.server, named, present=present, whole=whole)
    if others:
        say(f"cluster-remote: {not_recorded(outcome.target, others)}", err=True)
    return replace(outcome, recorded=recorded)


async def described_and_recorded(
    outcome: _Change, target: Target, recorder: Recorder | None, *, present: bool, whole: bool
) -> _Change:
    """Add descriptions to the result of a change, and record it if there is a recorder."""
    descriptions = target.view.logs.descriptions
    uuids = sorted({outcome.server, *outcome.uuids} & descriptions.keys())
    outcome = replace(outcome, descriptions={str(uuid): descriptions[uuid] for uuid in uuids})
    return await record_answer(recorder, outcome, outcome.uuids, present=present, whole=whole)


def shown_progress(lines: ProgressLines, name: str) -> Callable[[int], None]:
    """Return a function that takes positions in the content and shows them as progress."""
    last = 0

    def moved(position: int) -> None:
        nonlocal last
        lines.advance(name, position - last)
        last = position

    return moved
