"""cluster-remote present, put, get, drop, lock: one request to one server or node."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from cluster_remote.access.identity import not_recorded
from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.contents import associated_file, content_of, key_of
from cluster_remote.annex.repository import Repository, without_token
from cluster_remote.cli.completion import nodes
from cluster_remote.cli.exitcodes import FAILED, INTERRUPTED
from cluster_remote.cli.foreground import run_in_foreground, until_interrupted
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.options import Json, NameOrUrl, Timeout
from cluster_remote.cli.progress import Lines, progress
from cluster_remote.cli.render import duration, emit, say, size
from cluster_remote.cli.target import Target, resolve
from cluster_remote.diagnosis import request
from cluster_remote.diagnosis.request import Downloaded, Dropped, Locked, Presence, Recorder, Uploaded
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.text import printable

__all__ = ["drop", "get", "lock", "present", "put"]

T = TypeVar("T")

_KeyOrFile = Annotated[
    str, typer.Argument(metavar="KEY|FILE", help="A key or an annexed file of this repository.", show_default=False)
]
_Node = Annotated[
    str,
    typer.Option(
        "--node",
        metavar="UUID|NAME",
        help="Ask one node behind the server, by UUID, description or name.",
        autocompletion=nodes,
        show_default=False,
    ),
]
_Record = Annotated[
    bool, typer.Option("--record", help="Record in the location log what the answer says about NAME's nodes.")
]


@asynccontextmanager
async def _reach(text: str, node: str, timeout: float | None, *, writing: bool = False) -> AsyncIterator[Target]:
    """Open a session with a target, and hang up at the end. Raises BadSettings, BadAddress, AnnexError."""
    target = await resolve(text, timeout=timeout, node=node, writing=writing)
    try:
        yield target
    finally:
        await target.session.aclose()


async def _key(text: str) -> tuple[Key, Repository | None]:
    """Return the key that a word means, and the repository if the word is the name of a file there."""
    if _exists(text):
        repository = await Repository.find()
        return await key_of(repository, text), repository
    try:
        return Key.parse(text), None
    except ValueError as error:
        raise BadSettings(f"there is no file {text!r} here, and {error}") from None


def _exists(path: str | Path) -> bool:
    # Also a dangling link: an annexed file without its content is one.
    return os.path.lexists(path)


def _described(target: Target, uuids: Collection[UUID]) -> dict[str, str]:
    descriptions = target.logs.descriptions
    return {str(uuid): descriptions[uuid] for uuid in sorted(uuids) if uuid in descriptions}


def _names(uuids: Collection[UUID], descriptions: Mapping[str, str]) -> str:
    return ", ".join(printable(descriptions.get(str(uuid), str(uuid))) for uuid in uuids)


def _recorded(uuids: Collection[UUID], descriptions: Mapping[str, str], console: Console) -> None:
    if uuids:
        console.print(f"recorded in the location log: {_names(uuids, descriptions)}")


def present(
    target: NameOrUrl,
    key: _KeyOrFile,
    node: _Node = "",
    record: _Record = False,
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
    key, _ = await _key(word)
    async with _reach(text, node, timeout, writing=record) as target:
        recorder = request.Recorder.of(target) if record else None
        if recorder and recorder.settings.tracking == "nodes" and recorder.settings.uuid.is_cluster and not node:
            raise BadSettings(
                "--record: a cluster does not say which of its nodes have the content; ask each with --node"
            )
        request.check_legible(target.settings, key)
        outcome = await request.present(target.session, target.label, key)
    if recorder is None:
        return outcome
    return replace(outcome, recorded=await _record(recorder, outcome, (), present=outcome.present))


async def _record(
    recorder: Recorder,
    outcome: Presence | Uploaded | Dropped,
    named: Collection[UUID],
    *,
    present: bool,
    whole: bool = True,
) -> tuple[UUID, ...]:
    recorded, others = await recorder.record(outcome.key, outcome.server, named, present=present, whole=whole)
    if others:
        say(f"cluster-remote: {not_recorded(outcome.target, others)}", err=True)
    return recorded


def _show_presence(outcome: Presence, console: Console) -> None:
    console.print(f"{outcome.target}: {'has' if outcome.present else 'does not have'} {outcome.key}")
    _recorded(outcome.recorded, {}, console)


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
    node: _Node = "",
    record: _Record = False,
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
        if not _exists(file):
            raise BadSettings(f"there is no file {file!r}; to store a key, give --key KEY --from PATH")
        key, repository = await _key(file)
        assert repository is not None
        name = associated_file(repository, file)
        path = await content_of(repository, key)
    else:
        try:
            key = Key.parse(key_text)
        except ValueError as error:
            raise BadSettings(f"--key: {error}") from None
        path = os.fsencode(source) if source else await content_of(await Repository.find(), key)
    async with _reach(text, node, timeout, writing=True) as target:
        settings = target.settings
        if settings is not None and settings.encryption != "none":
            raise BadSettings(
                f"{settings.name} is encrypted, and this command would store the content unencrypted; git annex copy "
                f"--to {shlex.quote(settings.name)} encrypts it"
            )
        recorder = request.Recorder.of(target) if record else None
        with progress(in_bytes=True) as lines:
            lines.begin(target.label, key.content_size)
            outcome = await request.upload(target.session, target.label, key, name, path, _moving(lines, target.label))
    outcome = replace(outcome, descriptions=_described(target, {outcome.server, *outcome.uuids}))
    if recorder is None:
        return outcome
    recorded = await _record(recorder, outcome, outcome.uuids, present=True, whole=outcome.stored)
    return replace(outcome, recorded=recorded)


def _moving(lines: Lines, name: str) -> Callable[[int], None]:
    """Return a function that shows positions in the content as progress."""
    last = 0

    def moved(position: int) -> None:
        nonlocal last
        lines.advance(name, position - last)
        last = position

    return moved


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
        console.print(f"on: {_names(outcome.uuids, outcome.descriptions)}")
    for reason in outcome.reasons:
        console.print(f"because: {printable(reason)}")
    _recorded(outcome.recorded, outcome.descriptions, console)


def get(
    target: NameOrUrl,
    key: _KeyOrFile,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="PATH",
            help="The file to write (default: in this directory, named after the key).",
            show_default=False,
        ),
    ] = "",
    resume: Annotated[bool, typer.Option("--continue", help="Resume where the file at PATH ends.")] = False,
    node: _Node = "",
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Download content from a server, or from one node behind it, into a file, and verify its checksum.

    Does not change the repository; git annex get does that.

    Exit codes: 0 downloaded, 1 not downloaded or wrong checksum, 2 wrong usage, 3 no answer, 4 not in a repository,
    130 interrupted.

    Example: cluster-remote get mycluster photo.jpg --node nas --to /tmp/from-nas.jpg
    """
    outcome = run(_get, target, key, Path(to) if to else None, resume, node, timeout)
    emit(outcome, as_json, _show_download)
    if outcome.verified is False:
        raise typer.Exit(FAILED)


async def _get(text: str, word: str, path: Path | None, resume: bool, node: str, timeout: float | None) -> Downloaded:
    key, _ = await _key(word)
    # Key names may contain slashes; git-annex writes them like this in file names.
    path = path or Path(str(key).replace("/", "%"))
    before = _check_free(path, resume)
    async with _reach(text, node, timeout) as target:
        with progress(in_bytes=True) as lines:
            lines.begin(target.label, key.content_size)
            moved = _moving(lines, target.label)
            try:
                return await request.download(target.session, target.label, key, path, moved)
            except BaseException:
                if not before:
                    _explain_partial(path)
                raise


def _check_free(path: Path, resume: bool) -> bool:
    """Return whether `path` is a file to resume. Raises BadSettings if it must not be touched."""
    if path.is_dir():
        raise BadSettings(f"{str(path)!r} is a directory; name a file in it: --to PATH")
    there = _exists(path)
    if there and not resume:
        raise BadSettings(f"{str(path)!r} exists; use --continue to resume it, or --to another file")
    return there


def _explain_partial(path: Path) -> None:
    if not path.exists():
        return
    came = path.stat().st_size
    if came:
        print(f"the first {size(came)} are in {str(path)!r}; --continue resumes from there", file=sys.stderr)
    else:
        path.unlink()


def _show_download(outcome: Downloaded, console: Console) -> None:
    came = outcome.size - outcome.offset
    console.print(
        f"{outcome.target}: {size(came)} in {duration(outcome.seconds)} into {printable(outcome.path)}"
        + (f", after the {size(outcome.offset)} already there" if outcome.offset else "")
    )
    match outcome.verified:
        case True:
            console.print("the checksum matches")
        case False:
            console.print(f"checksum mismatch: this is NOT the content of {outcome.key}")
        case None:
            console.print("this key has no checksum to verify")


def drop(
    target: NameOrUrl,
    key: _KeyOrFile,
    force: Annotated[
        bool, typer.Option("--force", help="Confirm removing it without checking for other copies. Required.")
    ] = False,
    node: _Node = "",
    record: _Record = False,
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
    key, _ = await _key(word)
    async with _reach(text, node, timeout, writing=True) as target:
        recorder = request.Recorder.of(target) if record else None
        request.check_legible(target.settings, key)
        outcome = await request.drop(target.session, target.label, key)
    outcome = replace(outcome, descriptions=_described(target, {outcome.server, *outcome.uuids}))
    if recorder is None:
        return outcome
    recorded = await _record(recorder, outcome, outcome.uuids, present=False, whole=outcome.removed)
    return replace(outcome, recorded=recorded)


def _show_removal(outcome: Dropped, console: Console) -> None:
    if outcome.removed:
        console.print(f"{outcome.target}: no longer has {outcome.key}")
    else:
        console.print(f"{outcome.target}: did not remove {outcome.key}" + (" everywhere" if outcome.uuids else ""))
    if outcome.uuids:
        console.print(f"removed from: {_names(outcome.uuids, outcome.descriptions)}")
    for reason in outcome.reasons:
        console.print(f"because: {printable(reason)}")
    _recorded(outcome.recorded, outcome.descriptions, console)


def lock(
    target: NameOrUrl,
    key: _KeyOrFile,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND…]", help="Command to run meanwhile (default: wait for Ctrl-C).", show_default=False
        ),
    ] = None,
    node: _Node = "",
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
    key, _ = await _key(word)
    async with _reach(text, node, timeout) as target, request.lock(target.session, target.label, key) as outcome:
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
