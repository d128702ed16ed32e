"""cluster-remote get: download content from a server or node into a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster_remote.access.settings import BadSettings
from cluster_remote.cli.exitcodes import FAILED
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.options import Json, NameOrUrl, Timeout
from cluster_remote.cli.progress import progress
from cluster_remote.cli.render import duration, emit, size
from cluster_remote.cli.requesting import (
    KeyOrFile,
    Node,
    key_named,
    path_exists,
    shown_progress,
)
from cluster_remote.cli.target import connected
from cluster_remote.diagnosis import request
from cluster_remote.diagnosis.request import Downloaded
from cluster_remote.p2p.text import printable

__all__ = ["get"]


def get(
    target: NameOrUrl,
    key: KeyOrFile,
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
    node: Node = "",
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
    key, _ = await key_named(word)
    # Key names may contain slashes, which git-annex replaces like this in file names.
    path = path or Path(str(key).replace("/", "%"))
    before = _check_free(path, resume)
    async with connected(text, node, timeout) as target:
        with progress(in_bytes=True) as lines:
            lines.begin(target.label, key.content_size)
            moved = shown_progress(lines, target.label)
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
    there = path_exists(path)
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
