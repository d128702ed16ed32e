"""The resources of one gateway: descriptors and processes are scarce, and running out must only fail one request.

Each client's session with a cluster has one process and three descriptors per node.
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
    """The descriptors for sessions, shared by all clients of a gateway."""

    def __init__(self, descriptors: int | None = None) -> None:
        if descriptors is None:
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            descriptors = MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
        self._all = max(descriptors - _OWN_DESCRIPTORS, 0)
        self._taken = 0

    def strangers(self, wanted: int) -> int:
        """Return how many unauthenticated clients may connect: they get an eighth of the descriptors at most."""
        return min(wanted, max(self._all // 16, 2))

    def take(self, nodes: int) -> int:
        """Reserve what a session with that many nodes needs; free it with `give_back`.

        Raises Unreachable if there is too little; the first session always gets what it wants.
        """
        needed = _PER_SESSION + _PER_NODE * nodes
        if self._taken and self._taken + needed > self._all - self._all // 8:
            raise Unreachable(
                "this gateway has no file descriptors left for another client; try again later (to raise its limit: "
                "ulimit -n, or LimitNOFILE= in its systemd unit)"
            )
        self._taken += needed
        return needed

    def give_back(self, descriptors: int) -> None:
        """Free what `take` reserved."""
        self._taken -= descriptors
