"""Find the work tree file with a key, because git-annex does not pass its name to special remotes.

The index is enough: an annexed file is a symlink or a pointer whose text follows from its key, so the hash of its blob
can be computed. (git-annex's pages "internals" and "hashing".)
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator

import anyio
import anyio.to_thread

from cluster_remote.annex.filestate import FileState, state_of
from cluster_remote.annex.locations import output_of
from cluster_remote.annex.logformat import key_file
from cluster_remote.annex.objects import folders_of
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.key import AssociatedFile, Key, decode

__all__ = ["FileNames"]

_ENTRY = re.compile(rb"(?:100644|100755|120000) ([0-9a-f]+) 0\t([^\0]*)\0")


class FileNames:
    """The names of a repository's annexed files by key. The index is read again only if it has changed."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._reading = anyio.Lock()
        self._read_from: FileState | None = None
        self._paths: dict[bytes, bytes] = {}
        self._depth = 0

    async def of(self, key: Key) -> AssociatedFile:
        """Return the file with this key, relative to the top of the work tree, or none.

        If several files have it, return the first in the index, which `git annex copy .` processes first. Raises
        CommandFailed.
        """
        async with self._reading:
            state = await anyio.to_thread.run_sync(self._index_state)
            if state is None or state != self._read_from:
                await self._read()
                self._read_from = state
        paths = [path for blob in _blobs(key, self._depth, self._algorithm) if (path := self._paths.get(blob))]
        return AssociatedFile(decode(min(paths, default=b"")))

    def _index_state(self) -> FileState | None:
        index = os.environ.get("GIT_INDEX_FILE") or self._repository.git_dir / "index"
        return state_of(self._repository.working_directory / index)

    async def _read(self) -> None:
        self._paths, self._depth = {}, 0
        rest = b""
        argv = ("git", "ls-files", "--stage", "-z", "--full-name", ":/")
        async with output_of(self._repository, argv) as listing:
            async for chunk in listing:
                rest += chunk
                end = rest.rfind(b"\0") + 1
                for blob, path in _ENTRY.findall(rest[:end]):
                    self._paths.setdefault(bytes.fromhex(blob.decode()), path)
                    self._depth = max(self._depth, path.count(b"/"))
                rest = rest[end:]

    @property
    def _algorithm(self) -> str:
        # The two object formats of git differ in length.
        return "sha1" if len(next(iter(self._paths), b"")) == 20 else "sha256"


def _blobs(key: Key, depth: int, algorithm: str) -> Iterator[bytes]:
    """Yield the hashes of all possible blobs for a key: the pointer, and the symlinks down to a depth."""
    name = key_file(key)
    yield _hash(b"/annex/objects/" + name + b"\n", algorithm)
    for folders in folders_of(key):
        for level in range(depth + 1):
            yield _hash(b"../" * level + b".git/annex/objects/" + folders + name + b"/" + name, algorithm)


def _hash(content: bytes, algorithm: str) -> bytes:
    return hashlib.new(algorithm, b"blob %d\0" % len(content) + content, usedforsecurity=False).digest()
