"""Find and read the content of keys in a repository's directory, as git-annex lays it out (its page "internals")."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator

from cluster_remote.annex.logformat import key_file
from cluster_remote.p2p.key import Key

__all__ = ["Objects", "folders_of"]

# git-annex's digits for five bits each, in the names of object directories.
_LETTERS = "0123456789zqjxkmvwgpfZQJXKMVWGPF"
# In a repository with a work tree, and in a bare one.
_ROOTS = (b"/.git/annex/objects/", b"/annex/objects/")


class Objects:
    """The objects of a repository on a local disk. Any may be missing, damaged or modified, so verify its content."""

    def __init__(self, directory: str) -> None:
        self._directory = os.fsencode(directory)
        self._found_in: tuple[bytes, int] | None = None

    def read(self, key: Key, max_bytes: int) -> bytes | None:
        """Return content of the key's length; None if there is none, or the key has more than `max_bytes`."""
        if key.content_size is None or key.content_size > max_bytes:
            return None
        name = key_file(key)
        layouts = [(root, number, folders) for root in _ROOTS for number, folders in enumerate(folders_of(key))]
        # A repository has all its contents in the same layout.
        for root, number, folders in sorted(layouts, key=lambda layout: layout[:2] != self._found_in):
            content = _read(self._directory + root + folders + name + b"/" + name, key.content_size)
            if content is not None:
                self._found_in = (root, number)
                return content
        return None


def _read(path: bytes, size: int) -> bytes | None:
    try:
        # Do not follow a symlink, nor block on a named pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            return None
        content = os.read(descriptor, size)
        return content if len(content) == size else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def folders_of(key: Key) -> Iterator[bytes]:
    """Yield the directories that may contain an object: git-annex's usual ones first, then those of other tunings."""
    digest = hashlib.md5(bytes(key), usedforsecurity=False).digest()
    number = int.from_bytes(digest[:4], "little")
    a, b, c, d = (_LETTERS[number >> 6 * digit & 31] for digit in range(4))
    lower = digest.hex()
    for first, second in ((b + a, d + c), (lower[:3], lower[3:6])):
        yield f"{first}/{second}/".encode()
        yield f"{first}/".encode()
