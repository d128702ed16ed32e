"""Upload content, and record its new locations at the last moment.

git-annex undoes an upload whose file changed, or was dropped here, during the upload. So locations are recorded only
after the last node has answered, and only if the file has not changed by then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from cluster_remote.access.identity import not_recorded
from cluster_remote.annex.filestate import state_of
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
    """The content was not stored, or its copies cannot be counted."""


async def store(
    context: Context, session: Session, key: Key, path: bytes, progress: Progress, tell: Callable[[str], None]
) -> None:
    """Store the file at `path`, and record its locations. `tell` receives messages about a partial success.

    Raises NotStored, SessionError, LocationLogError.
    """
    context.expect_to_record()
    file = Path(os.fsdecode(path))
    before = state_of(file)
    known = await context.nodes_with(key) if context.counts_nodes else frozenset()
    outcome = await session.store(stored_as(key), await context.file_of(key), FileSource(path), progress)
    was_there = isinstance(outcome, Present)
    if isinstance(outcome, Present):
        outcome = Stored(True, present=outcome.uuids)
    new, unknown = await context.believed(outcome.uuids)
    had, others = await context.believed(outcome.present)
    if unknown or others:
        tell(not_recorded(session.name, unknown | others))
    if not outcome.stored:
        # Some nodes may have stored it anyway, and git-annex does not undo a failed upload.
        await _record(context, key, new | had)
        raise NotStored("; ".join(outcome.reasons) or f"{session.name} did not store it")
    if context.is_cluster:
        # When in doubt, keep a good copy: copies that the log listed before are not new. Without a checksum, a copy
        # cannot be known to be good, so the answer counts.
        added = new - known if key.has_checksum else new
    else:
        added = frozenset() if was_there else frozenset({context.settings.uuid})
    # An equal state proves nothing: git-annex checks again, and may still undo the upload.
    if state_of(file) != before:
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
