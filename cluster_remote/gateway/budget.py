"""The file descriptors of one gateway: they are scarce, and running out must only fail one request.

Each session with a cluster has one process and three descriptors per node.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cluster_remote.limits import descriptors_for_sessions, descriptors_needed
from cluster_remote.p2p.errors import Unreachable

__all__ = ["DescriptorBudget", "Reserved", "ShareUsedUp"]

# The largest share for the sessions of one owner.
_SHARE = 0.75
_HOW_TO_RAISE = "(to raise its limit: ulimit -n, or LimitNOFILE= in its systemd unit)"


class ShareUsedUp(Unreachable):
    """An owner's sessions use its share already. Only another of them can make room."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """Descriptors for one session. `owner` is what its client is counted by."""

    owner: str
    number: int


class DescriptorBudget:
    """The descriptors that all clients of a gateway share."""

    def __init__(self, descriptors: int | None = None) -> None:
        self._all = descriptors_for_sessions(descriptors)
        self._taken: Counter[str] = Counter()

    def strangers(self, wanted: int) -> int:
        """Return how many unauthenticated clients may connect: they get at most an eighth of the descriptors."""
        return min(wanted, max(self._all // 16, 2))

    def take(self, nodes: int, owner: str) -> Reserved:
        """Reserve and return what a session with so many nodes needs; free it with `give_back`.

        Raises ShareUsedUp if `owner` has its share already, and Unreachable if too few are left; the first session of a
        gateway and of an owner always gets what it needs, if there is that much.
        """
        return self._reserve(descriptors_needed(nodes), owner)

    def _reserve(self, needed: int, owner: str) -> Reserved:
        usable, taken, mine = self._all - self._all // 8, self._taken.total(), self._taken[owner]
        if mine and mine + needed > usable * _SHARE:
            raise ShareUsedUp(
                "clients with this token, or from this address, already use their share of this gateway's file "
                f"descriptors; try again later, or with fewer connections {_HOW_TO_RAISE}"
            )
        if taken and taken + needed > usable:
            raise Unreachable(
                f"this gateway has no file descriptors left for another client; try again later {_HOW_TO_RAISE}"
            )
        self._taken[owner] += needed
        return Reserved(owner, needed)

    def pass_on(self, reserved: Reserved, owner: str) -> Reserved:
        """Count a session's descriptors for another owner. Raises ShareUsedUp, and changes nothing then."""
        self.give_back(reserved)
        try:
            return self._reserve(reserved.number, owner)
        except Unreachable:
            self._taken[reserved.owner] += reserved.number
            raise

    def give_back(self, reserved: Reserved) -> None:
        """Free what `take` reserved."""
        self._taken[reserved.owner] -= reserved.number
        if not self._taken[reserved.owner]:
            del self._taken[reserved.owner]
