"""Keep a watch on the directory that git-annex watches during a download, which makes git-annex's own end quickly.

While a special remote writes a file, git-annex watches the file's directory to hash the content as it grows, and ends
the watch after each file. When the last watch of a directory ends, Linux frees what all of them shared, and closing an
inotify descriptor in that moment waits for up to 20 ms, several times as long as a small file takes. As long as this
program watches the directory too, git-annex's watch is never the last one.
"""

from __future__ import annotations

import os
import sys

__all__ = ["KeptWatch"]

# Linux's numbers: the only event asked for, so that none arrives during normal work; and close-on-exec.
_IN_DELETE_SELF = 0x400
_IN_CLOEXEC = os.O_CLOEXEC


class KeptWatch:
    """A watch on the directory of the latest download. Does nothing where there is no inotify, no room or no ctypes."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._directory = b""

    def keep(self, directory: bytes) -> None:
        """Watch this directory until the next call with another one, or until the end."""
        if directory == self._directory or not sys.platform.startswith("linux"):
            return
        self.close()
        self._directory = directory
        try:
            # Only now: it takes longer than all else here, uploads do not need it, and not every Python has it.
            import ctypes
        except ImportError:
            return
        system = ctypes.CDLL(None)
        descriptor = system.inotify_init1(_IN_CLOEXEC)
        if descriptor >= 0:
            system.inotify_add_watch(descriptor, directory, _IN_DELETE_SELF)
            self._descriptor = descriptor

    def close(self) -> None:
        """End the watch."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
