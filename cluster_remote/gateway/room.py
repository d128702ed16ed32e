"""What one gateway has room for: descriptors and processes are few, and running out of them must cost one request.

Each client's session with a cluster has a process, and three descriptors, for every node.
"""

from __future__ import annotations

import errno
import resource
from contextlib import suppress

from cluster_remote.p2p.errors import Unreachable

__all__ = ["Room", "guard_this_process", "out_of_room", "room_in_words"]

_OUT_OF_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN})
# More than any gateway needs; a hard limit may be a billion, which some programs that we start loop over.
_MOST_DESCRIPTORS = 65536
# What the gateway needs besides its clients: the event loop, listeners, children that read logs, git.
_OWN_DESCRIPTORS = 40
_PER_NODE, _PER_SESSION = 4, 4


def guard_this_process() -> None:
    """Raise the soft limit of descriptors to the hard one, and keep tokens out of core files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    # Some systems allow less than the hard limit says: the soft one then stays.
    with suppress(OSError, ValueError):
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def out_of_room(error: BaseException) -> OSError | MemoryError | None:
    """Find what says that this machine, or this process, has no room, also within a group of errors."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _OUT_OF_ROOM):
        return error
    for inner in getattr(error, "exceptions", ()):
        if (found := out_of_room(inner)) is not None:
            return found
    return None


def room_in_words(error: OSError | MemoryError) -> str:
    """Say what there is too little of."""
    what = (error.strerror or str(error)) if isinstance(error, OSError) else "out of memory"
    return f"no room for this request at the moment: {what}; try again later"


class Room:
    """The descriptors that sessions may use, shared by all clients of a gateway."""

    def __init__(self, descriptors: int | None = None) -> None:
        if descriptors is None:
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            descriptors = _MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
        self._all = max(descriptors - _OWN_DESCRIPTORS, 0)
        self._taken = 0

    def strangers(self, wanted: int) -> int:
        """How many that have not authenticated may be connected: they get an eighth of the descriptors at most."""
        return min(wanted, max(self._all // 16, 2))

    def take(self, nodes: int) -> int:
        """Set aside what a session with so many nodes needs. Give it back by `give_back`.

        Raises Unreachable where there is too little; the first session always gets what it wants.
        """
        needed = _PER_SESSION + _PER_NODE * nodes
        if self._taken and self._taken + needed > self._all - self._all // 8:
            raise Unreachable(
                "this gateway has no descriptors left for one more client; try again later (its limit can be raised: "
                "ulimit -n, or LimitNOFILE= in its systemd unit)"
            )
        self._taken += needed
        return needed

    def give_back(self, descriptors: int) -> None:
        """Give back what `take` set aside."""
        self._taken -= descriptors
