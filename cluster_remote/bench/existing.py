"""Measure an existing remote or address with the requests that git-annex would make, but without git-annex.

Stores random contents under unique keys, and removes them again, even after errors. Nothing is recorded in this
repository, though a gateway may record the changes in its own log.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio

from cluster_remote.bench.cases import Load, Results
from cluster_remote.bench.testbed import BenchFailed
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.key import AssociatedFile, Key
from cluster_remote.p2p.session import Present, Session
from cluster_remote.remote.retrieval import NotRetrieved, retrieve

__all__ = ["make_content", "measure"]

# Bytes to generate at once.
_BLOCK = 1024 * 1024
# Seconds for removing what was stored after an aborted measurement.
_CLEANING = 10.0


async def measure(
    session: Session, label: str, load: Load, rounds: int, results: Results, tell: Callable[[str], None],
    directory: Path | None = None,
) -> None:  # fmt: skip
    """Upload, check, download and drop, with new contents in each round. Raises BenchFailed, SessionError."""
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="cluster-remote-bench-", dir=directory) as folder:
            contents = [make_content(Path(folder), number, load.size) for number in range(load.files)]
            begun: list[Key] = []
            try:
                await _round(session, label, load, contents, begun, results, tell)
            except BaseException:
                with anyio.move_on_after(_CLEANING, shield=True) as cleaning:
                    await _clean(session, begun, tell)
                if cleaning.cancelled_caught:
                    tell(f"{' '.join(map(str, begun))} may be left behind: there was no time to remove what was stored")
                raise


async def _round(
    session: Session, label: str, load: Load, contents: list[tuple[Key, Path]], begun: list[Key], results: Results,
    tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Run one round; `begun` collects the keys that may exist."""
    target = contents[0][1].with_name("down")

    async def up(key: Key, path: Path) -> None:
        begun.append(key)
        outcome = await session.store(key, AssociatedFile(), FileSource(os.fsencode(path)))
        if isinstance(outcome, Present) or not outcome.stored:
            raise BenchFailed(f"{label} did not store content: {getattr(outcome, 'reasons', 'it has it already')}")

    async def check(key: Key, path: Path) -> None:
        if not await session.check_present(key):
            raise BenchFailed(f"{label} lacks content that it has just stored")

    async def down(key: Key, path: Path) -> None:
        try:
            await retrieve(session, key, os.fsencode(target), lambda _position: None)
        except NotRetrieved as error:
            raise BenchFailed(str(error)) from None
        target.unlink()

    async def drop(key: Key, path: Path) -> None:
        outcome = await session.remove(key)
        if not outcome.removed:
            raise BenchFailed(f"{label} did not remove content: {'; '.join(outcome.reasons)}")

    for step in (up, check, down, drop):
        started = time.perf_counter()
        for key, path in contents:
            await step(key, path)
        seconds = time.perf_counter() - started
        case = f"{load.name} {step.__name__}"
        results.add(case, label, "seconds", seconds)
        tell(f"{case}: {label} {seconds:.2f} s")


def make_content(directory: Path, number: int, size: int) -> tuple[Key, Path]:
    """Create a file of `size` random bytes; return its key and path."""
    path = directory / str(number)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        left = size
        while left:
            block = os.urandom(min(left, _BLOCK))
            digest.update(block)
            file.write(block)
            left -= len(block)
    return Key(f"SHA256-s{size}--{digest.hexdigest()}"), path


async def _clean(session: Session, keys: list[Key], tell: Callable[[str], None]) -> None:
    for key in keys:
        try:
            await session.remove(key)
        except SessionError as error:
            tell(f"{key} may be left behind: {error}")
