"""Why git-annex removes a content, which it does not say: what it asked for this content just before tells.

* An upload is undone by a removal of the same key, where the file changed or was dropped while it was being sent.
* `git annex fsck --from` has a damaged content removed that it has just fetched into a file of its own kind.

Of a content in chunks each chunk is fetched into a file of the usual kind, but what they make up is such a file, which
is still there when the chunks are removed, or has just been moved to where git-annex keeps damaged contents.

Observed with git-annex 10.20261026. With several jobs the removal may come in another job than what it follows, so what
counts is the last request about the key, whichever job made it. Any other removal follows neither.
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

# Uploads and checks that are remembered: more than git-annex has jobs, each of which removes at once or not at all.
_MOST = 1024

# Seconds that the clock of a file system may be behind.
_CLOCKS = 2.0

# No key begins like this: the names of backends are in capitals.
_FOR_FSCK = re.compile(rb"fsck[0-9]+\..")


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The last request stored the content."""

    added: frozenset[UUID]
    """The repositories that had it only then."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The last request fetched the content for fsck."""

    origin: UUID | None
    """The repository that gave it; None where that cannot be told."""


Cause: TypeAlias = Uploaded | Fetched


class Causes:
    """The last request about each of the keys that were asked for last."""

    def __init__(self) -> None:
        self._last: OrderedDict[Key, Cause] = OrderedDict()
        self._chunks: OrderedDict[Key, tuple[Path, float]] = OrderedDict()

    def remember(self, key: Key, cause: Cause) -> None:
        """To be called when the request has succeeded."""
        self._last[key] = cause
        self._last.move_to_end(key)
        if len(self._last) > _MOST:
            self._last.popitem(last=False)

    def take(self, key: Key) -> Cause | None:
        """What went before; to be called by every request about the key. From then on it is forgotten."""
        return self._last.pop(key, None)

    def fetched_chunk(self, whole: Key, path: bytes) -> None:
        """Remember that a chunk of a content was fetched into a file where git-annex keeps unfinished ones."""
        self._chunks.setdefault(whole, (Path(os.fsdecode(path)).parent, time.time()))
        self._chunks.move_to_end(whole)
        if len(self._chunks) > _MOST:
            self._chunks.popitem(last=False)

    def fsck_has_chunks(self, whole: Key) -> bool:
        """Return whether fsck has fetched the chunks of this content, and found it damaged if it removes any."""
        if whole not in self._chunks:
            return False
        folder, since = self._chunks[whole]
        name = os.fsdecode(key_file(whole))
        with suppress(FileNotFoundError):
            if (folder.parent / "bad" / name).stat().st_ctime >= since - _CLOCKS:
                return True
        return any(folder.glob(f"fsck*.{glob.escape(name)}"))


def is_for_fsck(path: bytes) -> bool:
    """Whether a content is fetched into this file to be checked: `fsckPID.KEY`."""
    return _FOR_FSCK.match(path.rpartition(b"/")[2]) is not None
