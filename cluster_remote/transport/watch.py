"""Whether a directory is still the one that it was.

A disk can be taken away while a server works on it. git-annex-shell would then say of every content that it is not
there, and of every removal that it succeeded; so before it is asked, its directory is looked at. On most disks of this
machine that takes a few microseconds. On a mount whose server does not answer it takes for ever, and nobody else must
wait.
"""

from __future__ import annotations

import math
import os
import queue
import re
import threading
from pathlib import Path

from cluster_remote.annex.child import until

__all__ = ["Watch", "is_at_hand"]

# Seconds that a look at a directory may keep everybody waiting. After that it counts as gone.
_AT_ONCE = 0.5
# File systems that have what a look takes in the memory or on the disks of this machine. Others may have to wait for a
# server, or for a program.
_AT_HAND = frozenset(
    {"bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfsplus", "jfs", "msdos", "ntfs3", "ramfs", "tmpfs"}
    | {"vfat", "xfs", "zfs"}
)
_ESCAPED = re.compile(r"\\([0-7]{3})")

_Identity = tuple[int, int]


class Watch:
    """Looks which directory is at `place`.

    Where that may take long, in a thread of its own: a daemon, so that the program can end all the same.
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
        """Takes the first look, however long that takes."""
        await until(lambda: not self._found.empty(), math.inf)
        self._first = self._found.get()
        # It has just answered. What a link leads to may be anywhere, at any time.
        place = os.path.abspath(self._place)  # noqa: ASYNC240, PTH100
        self._at_hand = os.path.realpath(place) == place and is_at_hand(place, _mounts())  # noqa: ASYNC240
        if self._at_hand:
            self.end()

    def shows_the_same(self) -> bool:
        """Whether it is still the directory of the first look. If that does not come out at once it is not, and there
        is nothing more to be asked of this."""
        if self._at_hand:
            return _identity(self._place) == self._first
        self._asked.put(True)
        try:
            return self._found.get(timeout=_AT_ONCE) == self._first
        except queue.Empty:
            return False

    def end(self) -> None:
        """Ends the thread, as soon as it can."""
        self._asked.put(False)


def _identity(place: str) -> _Identity | None:
    try:
        found = Path(place).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        # Not Linux: nothing is known.
        return ""


def is_at_hand(place: str, mounts: str) -> bool:
    """Whether a look at a directory waits for nobody: not for what is mounted there, nor for what is on the way to it.

    `place` is an absolute path without links, `mounts` is what Linux lists in /proc/self/mountinfo: fields between
    spaces, of which the fifth is where the mount is, and the first after a `-` its type (proc_pid_mountinfo(5)).
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
