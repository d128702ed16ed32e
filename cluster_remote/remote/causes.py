"""Infer why git-annex removes content from its previous request about the same content.

* It undoes an upload by removing the same key, if the file changed or was dropped during the upload.
* `git annex fsck --from` removes damaged content that it has just downloaded to a specially named file.

For content in chunks, fsck fetches each chunk into a file with the usual name, but assembles them in such a specially
named file. That file still exists when the chunks are removed, or has just been moved to git-annex's directory for
damaged content.

Observed with git-annex 10.20261026. With several jobs, the removal may come in another job than the request before it,
so only the last request about the key counts, whichever its job. All other removals follow neither request.
"""

from __future__ import annotations

import glob
import os
import re
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cluster_remote.annex.logformat import key_file
from cluster_remote.p2p.key import UUID, Key

__all__ = ["Cause", "Causes", "Fetched", "Uploaded", "is_for_fsck"]

# How many requests to remember: more than git-annex has jobs, each of which removes at once or not at all.
_MOST = 1024

# Seconds that the clock of a file system may be behind.
_CLOCKS = 2.0

# No key starts like this: backend names are in capitals.
_FOR_FSCK = re.compile(rb"fsck[0-9]+\..")


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The last request stored the content."""

    added: frozenset[UUID]
    """The repositories that did not have it before."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The last request downloaded the content for fsck."""

    origin: UUID | None
    """The repository that sent it; None if unknown."""


Cause: TypeAlias = Uploaded | Fetched


class Causes:
    """The last request about each of the most recent keys."""

    def __init__(self) -> None:
        self._last: OrderedDict[Key, Cause] = OrderedDict()
        self._chunks: OrderedDict[Key, tuple[Path, float]] = OrderedDict()

    def remember(self, key: Key, cause: Cause) -> None:
        """Remember a request. Call this when it has succeeded."""
        self._last[key] = cause
        self._last.move_to_end(key)
        if len(self._last) > _MOST:
            self._last.popitem(last=False)

    def take(self, key: Key) -> Cause | None:
        """Return and forget the previous request. Every request about the key calls this."""
        return self._last.pop(key, None)

    def remember_chunk(self, whole: Key, path: bytes) -> None:
        """Remember that a chunk of `whole` was fetched to `path`, in git-annex's directory for unfinished downloads."""
        self._chunks.setdefault(whole, (Path(os.fsdecode(path)).parent, time.time()))
        self._chunks.move_to_end(whole)
        if len(self._chunks) > _MOST:
            self._chunks.popitem(last=False)

    def fsck_fetched_chunks(self, whole: Key) -> bool:
        """Return whether fsck has fetched the chunks of this content, so that removing one means that it is damaged."""
        if whole not in self._chunks:
            return False
        folder, since = self._chunks[whole]
        name = os.fsdecode(key_file(whole))
        with suppress(FileNotFoundError):
            if (folder.parent / "bad" / name).stat().st_ctime >= since - _CLOCKS:
                return True
        return any(folder.glob(f"fsck*.{glob.escape(name)}"))


def is_for_fsck(path: bytes) -> bool:
    """Return whether this is a file that fsck downloads content to: `fsckPID.KEY`."""
    return _FOR_FSCK.match(path.rpartition(b"/")[2]) is not None
