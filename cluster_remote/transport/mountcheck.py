"""Check that a directory is still the same one as before.

A disk can be unmounted while a server works on it. git-annex-shell would then report every content as absent and every
removal as successful; so its directory is checked before each request. On most local disks that takes microseconds. On
a mount whose server does not answer it takes for ever, and nothing else must wait for it.
"""

from __future__ import annotations

import math
import os
import queue
import re
import threading
from pathlib import Path

from cluster_remote.annex.child import until

__all__ = ["MountCheck", "is_at_hand", "is_local"]

# Seconds that checking a directory may block everything else. After that it counts as gone.
_AT_ONCE = 0.5
# File systems in memory or on local disks. Checking others may wait for a server or a program.
_AT_HAND = frozenset(
    {"bcachefs", "btrfs", "devtmpfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfsplus", "jfs", "msdos", "ntfs3"}
    | {"ramfs", "tmpfs", "vfat", "xfs", "zfs"}
)
_ESCAPED = re.compile(r"\\([0-7]{3})")

_Identity = tuple[int, int]


class MountCheck:
    """Check which directory is at `place`.

    If that may take long, use a daemon thread, so that it cannot keep the program from ending.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._at_hand = False
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[_Identity | None] = queue.SimpleQueue()
        self._asked.put(True)
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while self._asked.get():
            self._found.put(_identity(self._place))

    async def begin(self) -> None:
        """Record which directory is there now, however long that takes."""
        await until(lambda: not self._found.empty(), math.inf)
        self._first = self._found.get()
        # It has just answered, but a symlink may point anywhere at any time.
        self._at_hand = is_local(self._place)
        if self._at_hand:
            self.end()

    def shows_the_same(self) -> bool:
        """Return whether it is still the recorded directory.

        False if that cannot be determined in time; this mountcheck is then unusable.
        """
        if self._at_hand:
            return _identity(self._place) == self._first
        self._asked.put(True)
        try:
            return self._found.get(timeout=_AT_ONCE) == self._first
        except queue.Empty:
            return False

    def end(self) -> None:
        """End the thread as soon as possible."""
        self._asked.put(False)


def _identity(place: str) -> _Identity | None:
    try:
        found = Path(place).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_local(place: str) -> bool:
    """Return whether checking a directory cannot block. It has just answered: this may wait for its disk."""
    place = os.path.abspath(place)  # noqa: PTH100 -- links are not followed
    return os.path.realpath(place) == place and is_at_hand(place, _mounts())


def _mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        # Not Linux: unknown.
        return ""


def is_at_hand(place: str, mounts: str) -> bool:
    """Return whether checking a directory cannot block: it and all its parents are on local file systems.

    `place` is an absolute path without symlinks, `mounts` the content of /proc/self/mountinfo: fields separated by
    spaces, of which the fifth is the mount point and the first after a `-` the type (proc_pid_mountinfo(5)).
    """
    types = set()
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 6 or not after:
            return False
        point = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[4])
        if place == point or place.startswith(point.rstrip("/") + "/"):
            types.add(after.split(" ")[0])
    return bool(types) and types <= _AT_HAND
