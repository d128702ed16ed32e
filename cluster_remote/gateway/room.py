"""What one gateway has room for: descriptors and processes are few, and running out of them must cost one request.

Each client's session with a cluster has a process, and three descriptors, for every node.
"""

from __future__ import annotations

import resource

from cluster_remote.limits import MOST_DESCRIPTORS
from cluster_remote.p2p.errors import Unreachable

__all__ = ["Room"]

# What the gateway needs besides its clients: the event loop, listeners, children that read logs, git.
_OWN_DESCRIPTORS = 40
_PER_NODE, _PER_SESSION = 4, 4


class Room:
    """The descriptors that sessions may use, shared by all clients of a gateway."""

    def __init__(self, descriptors: int | None = None) -> None:
        if descriptors is None:
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            descriptors = MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
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
