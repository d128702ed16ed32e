"""Which nodes could not be reached a short while ago, so that they do not cost their deadline on each of many files."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from cluster_remote.p2p.key import Key

__all__ = ["LONGEST_REST", "REST", "Reachability"]

# A node is left alone for this many times what its failure cost: at most a tenth of the time goes into trying. One
# that refuses at once is tried at once again; a failure of a few seconds is the most that is ever paid for.
REST = 10.0
# Seconds that a node is left alone at most: someone who has just brought it back should not have to wait.
LONGEST_REST = 120.0
# Seconds, and number of contents, for which it is remembered who gave them.
_MEMORY = 120.0
_REMEMBERED = 1000


class Reachability:
    """Remembers failures to reach a node. Several cluster sessions of one process may share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._resting: dict[str, tuple[float, str]] = {}
        self._silent: dict[str, float] = {}
        self._givers: OrderedDict[Key, tuple[float, frozenset[str]]] = OrderedDict()

    def failed(self, name: str, cost: float, reason: str) -> None:
        """A node could not be reached, or stalled; finding out took `cost` seconds."""
        self._resting[name] = self.clock() + min(REST * cost, LONGEST_REST), reason

    def answered(self, name: str) -> None:
        """A node gave any answer."""
        self._resting.pop(name, None)
        self._silent.pop(name, None)

    def silent(self, name: str, seconds: float) -> None:
        """A node has not answered for some seconds. It may yet; uploads and removals wait for it as before."""
        self._silent[name] = self.clock() + min(REST * seconds, LONGEST_REST)

    def was_silent(self, name: str) -> bool:
        """Whether reads had better ask others first."""
        return self.clock() < self._silent.get(name, 0.0)

    def resting(self, name: str) -> str | None:
        """Why a node is better left alone for now; None if it is not."""
        until, reason = self._resting.get(name, (0.0, ""))
        return reason if self.clock() < until else None

    def gives(self, key: Key, name: str) -> None:
        """Remember that a node has begun to give a content."""
        self._givers[key] = self.clock() + _MEMORY, self.givers(key) | {name}
        self._givers.move_to_end(key)
        if len(self._givers) > _REMEMBERED:
            self._givers.popitem(last=False)

    def givers(self, key: Key) -> frozenset[str]:
        """Return the nodes that have given a content lately."""
        until, names = self._givers.get(key, (0.0, frozenset[str]()))
        return names if self.clock() < until else frozenset()
