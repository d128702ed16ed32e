"""Uploads: what was stored where, recorded at the last moment.

git-annex undoes an upload whose file changed, or was dropped here, during the upload. So nothing is recorded before the
last node has answered, and nothing if the file has changed by then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from cluster_remote.access.identity import not_recorded
from cluster_remote.annex.version import NEEDED
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.session import Present, Progress, Session, Stored
from cluster_remote.remote.causes import Uploaded
from cluster_remote.remote.chunks import stored_as
from cluster_remote.remote.removal import undo

if TYPE_CHECKING:
    from cluster_remote.remote.context import Context

__all__ = ["NotStored", "store"]


class NotStored(SessionError):
    """The content was not stored, or not in a way that its copies could be counted."""


async def store(
    context: Context, session: Session, key: Key, path: bytes, progress: Progress, tell: Callable[[str], None]
) -> None:
    """Store the file at `path`, and record who has it now. `tell` gets messages about a partial success.

    Raises NotStored, SessionError, LocationLogError.
    """
    context.expect_to_record()
    before = _state_of(path)
    known = await context.nodes_with(key) if context.counts_nodes else frozenset()
    outcome = await session.store(stored_as(key), await context.file_of(key), FileSource(path), progress)
    was_there = isinstance(outcome, Present)
    if isinstance(outcome, Present):
        outcome = Stored(True, present=outcome.uuids)
    new, strangers = await context.believed(outcome.uuids)
    had, others = await context.believed(outcome.present)
    if strangers or others:
        tell(not_recorded(session.name, strangers | others))
    if not outcome.stored:
        # Some nodes may have it all the same, and a failed upload is not undone.
        await _record(context, key, new | had)
        raise NotStored("; ".join(outcome.reasons) or f"{session.name} did not store it")
    if context.is_cluster:
        # When in doubt, keep a good copy: what the log knew before is not new. Without a checksum nobody knows whether
        # a copy is good, so the answer counts.
        added = new - known if key.has_checksum else new
    else:
        added = frozenset() if was_there else frozenset({context.settings.uuid})
    if _state_of(path) != before:
        undone = await undo(context, session, key, added)
        raise NotStored(f"the file changed or was dropped here during the upload: {'; '.join(undone.reasons)}")
    for reason in outcome.reasons:
        tell(reason)
    if context.counts_nodes and not new | had:
        raise NotStored(
            f"{session.name} says that the content is stored, but not on which nodes (it speaks protocol version "
            f"{session.version}), so the copies cannot be counted; clusters need git-annex {NEEDED} "
            "or newer on the gateway; if cluster.log lacks nodes here, run git annex sync"
        )
    await _record(context, key, new | had)
    context.causes.remember(key, Uploaded(added))


async def _record(context: Context, key: Key, present: frozenset[UUID]) -> None:
    with anyio.CancelScope(shield=True):
        await context.record(key, present=present)


def _state_of(path: bytes) -> tuple[int, int, int, int] | None:
    """Return what identifies a file's state to git-annex: inode, size and time. None if it is gone.

    An equal state proves nothing: git-annex checks once more, and may still undo the upload.
    """
    try:
        found = Path(os.fsdecode(path)).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
