"""Remember which nodes were unreachable recently, so that they do not cost their timeout for each of many files."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster_remote.p2p.key import Key

__all__ = ["LONGEST_REST", "REST", "Reachability", "Traffic"]

# A node is skipped for this many times the cost of its failure: at most a tenth of the time goes into retries. One that
# refuses immediately is retried immediately; a timeout is paid for once in a while.
REST = 10.0
# The longest time to skip a node, in seconds: a user who has just brought it back should not have to wait.
LONGEST_REST = 120.0
# For how many seconds, and for how many contents, to remember which nodes sent them.
_MEMORY = 120.0
_REMEMBERED = 1000


class Traffic:
    """The nodes that downloads read from, so that a download with helpers does not compete with others."""

    def __init__(self) -> None:
        self._reading: Counter[str] = Counter()
        self._helping: dict[str, Callable[[], None]] = {}

    def is_free(self, name: str) -> bool:
        """Return whether no download reads from a node."""
        return not self._reading[name] and name not in self._helping

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Mark a download from a node, and end the help it gives to another download."""
        stop = self._helping.pop(name, None)
        if stop is not None:
            stop()
        self._reading[name] += 1
        try:
            yield
        finally:
            self._reading[name] -= 1

    @contextmanager
    def helping(self, name: str, stop: Callable[[], None]) -> Iterator[None]:
        """Mark a node as a helper; `stop` ends its help."""
        self._helping[name] = stop
        try:
            yield
        finally:
            if self._helping.get(name) == stop:
                del self._helping[name]


class Reachability:
    """Remember failures to reach nodes. Several cluster sessions of one process may share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.traffic = Traffic()
        self._resting: dict[str, tuple[float, str]] = {}
        self._silent: dict[str, float] = {}
        self._senders: OrderedDict[Key, tuple[float, tuple[str, ...]]] = OrderedDict()

    def failed(self, name: str, cost: float, reason: str) -> None:
        """Note that a node was unreachable or stalled, and that finding out took `cost` seconds."""
        self._resting[name] = self.clock() + min(REST * cost, LONGEST_REST), reason

    def answered(self, name: str) -> None:
        """Note that a node answered."""
        self._resting.pop(name, None)
        self._silent.pop(name, None)

    def silent(self, name: str, seconds: float) -> None:
        """Note that a node has been silent for `seconds`. It may still answer, so uploads and removals wait for it."""
        self._silent[name] = self.clock() + min(REST * seconds, LONGEST_REST)

    def was_silent(self, name: str) -> bool:
        """Return whether reads should ask others first."""
        return self.clock() < self._silent.get(name, 0.0)

    def resting(self, name: str) -> str | None:
        """Return why a node should be skipped for now; None if it should not."""
        until, reason = self._resting.get(name, (0.0, ""))
        return reason if self.clock() < until else None

    def sends(self, key: Key, name: str) -> None:
        """Remember that a node has started to send the content of a key."""
        before = tuple(sender for sender in self.senders(key) if sender != name)
        self._senders[key] = self.clock() + _MEMORY, (*before, name)
        self._senders.move_to_end(key)
        if len(self._senders) > _REMEMBERED:
            self._senders.popitem(last=False)

    def senders(self, key: Key) -> tuple[str, ...]:
        """Return the nodes that sent the content of a key recently, the latest last."""
        until, names = self._senders.get(key, (0.0, ()))
        return names if self.clock() < until else ()
