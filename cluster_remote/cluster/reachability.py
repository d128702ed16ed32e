"""Which nodes could not be reached a short while ago, so that they do not cost their deadline on each of many files."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster_remote.p2p.key import Key

__all__ = ["LONGEST_REST", "REST", "Reachability", "Traffic"]

# A node is left alone for this many times what its failure cost: at most a tenth of the time goes into trying. One
# that refuses at once is tried at once again; a failure of a few seconds is the most that is ever paid for.
REST = 10.0
# Seconds that a node is left alone at most: someone who has just brought it back should not have to wait.
LONGEST_REST = 120.0
# Seconds, and number of contents, for which it is remembered who gave them.
_MEMORY = 120.0
_REMEMBERED = 1000


class Traffic:
    """Which nodes downloads read from, so that a download that has help from other nodes keeps out of their way."""

    def __init__(self) -> None:
        self._reading: Counter[str] = Counter()
        self._helping: dict[str, Callable[[], None]] = {}

    def is_free(self, name: str) -> bool:
        """Whether no download reads from a node."""
        return not self._reading[name] and name not in self._helping

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Around a download from a node; whoever only helps another download there gives way."""
        give_way = self._helping.pop(name, None)
        if give_way is not None:
            give_way()
        self._reading[name] += 1
        try:
            yield
        finally:
            self._reading[name] -= 1

    @contextmanager
    def helping(self, name: str, give_way: Callable[[], None]) -> Iterator[None]:
        """Around what a node gives to help another one; `give_way` ends it."""
        self._helping[name] = give_way
        try:
            yield
        finally:
            if self._helping.get(name) == give_way:
                del self._helping[name]


class Reachability:
    """Remembers failures to reach a node. Several cluster sessions of one process may share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.traffic = Traffic()
        self._resting: dict[str, tuple[float, str]] = {}
        self._silent: dict[str, float] = {}
        self._givers: OrderedDict[Key, tuple[float, tuple[str, ...]]] = OrderedDict()

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
        before = tuple(giver for giver in self.givers(key) if giver != name)
        self._givers[key] = self.clock() + _MEMORY, (*before, name)
        self._givers.move_to_end(key)
        if len(self._givers) > _REMEMBERED:
            self._givers.popitem(last=False)

    def givers(self, key: Key) -> tuple[str, ...]:
        """Return the nodes that have given a content lately, the last one at the end."""
        until, names = self._givers.get(key, (0.0, ()))
        return names if self.clock() < until else ()
