"""The file descriptors of one gateway: they are scarce, and running out must only fail one request.

Each client's session with a cluster has one process and three descriptors per node.
"""

from __future__ import annotations

import resource

from cluster_remote.limits import MOST_DESCRIPTORS
from cluster_remote.p2p.errors import Unreachable

__all__ = ["DescriptorBudget"]

# For the gateway itself: the event loop, listeners, child processes that read logs, git.
_OWN_DESCRIPTORS = 40
_PER_NODE, _PER_SESSION = 4, 4


class DescriptorBudget:
    """The descriptors that all clients of a gateway share."""

    def __init__(self, descriptors: int | None = None) -> None:
        if descriptors is None:
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            descriptors = MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
        self._all = max(descriptors - _OWN_DESCRIPTORS, 0)
        self._taken = 0

    def strangers(self, wanted: int) -> int:
        """Return how many unauthenticated clients may connect: they get at most an eighth of the descriptors."""
        return min(wanted, max(self._all // 16, 2))

    def take(self, nodes: int) -> int:
        """Reserve and return what a session with so many nodes needs; free it with `give_back`.

        Raises Unreachable if too few are left; the first session always gets what it needs.
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
