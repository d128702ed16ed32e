"""Check that a directory is still the same one as before.

A disk can be unmounted while a server works on it. git-annex-shell would then report every content as absent and every
removal as successful, so its directory is checked before each request. On most local disks that takes microseconds; on
a mount whose server does not answer it takes for ever, and nothing else may wait for it.
"""

from __future__ import annotations

import math
import os
import queue
import re
import threading
from pathlib import Path

from cluster_remote.annex.child import until

__all__ = ["MountCheck", "has_local_mounts", "is_local"]

# Seconds that checking a directory may block everything else. After that it counts as gone.
_CHECK = 0.5
# File systems in memory or on local disks. Checking others may wait for a server or a program.
_LOCAL_TYPES = frozenset(
    {"bcachefs", "btrfs", "devtmpfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfsplus", "jfs", "msdos", "ntfs3"}
    | {"ramfs", "tmpfs", "vfat", "xfs", "zfs"}
)
_ESCAPED = re.compile(r"\\([0-7]{3})")

_Identity = tuple[int, int]


class MountCheck:
    """Check which directory is at a path.

    If that may take long, use a daemon thread, so that it cannot keep the program from ending.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._local = False
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[_Identity | None] = queue.SimpleQueue()
        self._asked.put(True)
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        while self._asked.get():
            self._found.put(_identity(self._path))

    async def begin(self) -> None:
        """Record which directory is there now, however long that takes."""
        await until(lambda: not self._found.empty(), math.inf)
        self._first = self._found.get()
        # `is_local` does not follow symlinks, because they may point anywhere at any time.
        self._local = is_local(self._path)
        if self._local:
            self.end()

    def is_unchanged(self) -> bool:
        """Return whether it is still the recorded directory.

        False if that cannot be determined in time, which makes this object unusable.
        """
        if self._local:
            return _identity(self._path) == self._first
        self._asked.put(True)
        try:
            return self._found.get(timeout=_CHECK) == self._first
        except queue.Empty:
            return False

    def end(self) -> None:
        """End the thread as soon as possible."""
        self._asked.put(False)


def _identity(path: str) -> _Identity | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_local(path: str) -> bool:
    """Return whether checking a directory cannot block. This itself may block, unless its disk has just answered."""
    path = os.path.abspath(path)  # noqa: PTH100 -- links are not followed
    return os.path.realpath(path) == path and has_local_mounts(path, _mounts())


def _mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        # Not Linux: unknown.
        return ""


def has_local_mounts(path: str, mounts: str) -> bool:
    """Return whether a directory and all its parents are on local file systems, so that checking it cannot block.

    `path` is absolute and without symlinks, `mounts` the content of /proc/self/mountinfo: fields separated by
    spaces, of which the fifth is the mount point and the first after a `-` the type (proc_pid_mountinfo(5)).
    """
    types = set()
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 6 or not after:
            return False
        point = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[4])
        if path == point or path.startswith(point.rstrip("/") + "/"):
            types.add(after.split(" ")[0])
    return bool(types) and types <= _LOCAL_TYPES
