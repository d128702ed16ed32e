"""What the location log says about the nodes of a cluster, in numbers, and a sample of the keys it speaks of. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cluster_remote.annex.locations import Located
from cluster_remote.p2p.key import UUID

__all__ = ["LogStatistics", "Tally"]

# Backends whose keys say nothing about the content. Of external backends only git-annex knows.
_UNVERIFIABLE = frozenset({"WORM", "URL"})


@dataclass
class Tally:
    """How many keys, and how many bytes they say they have."""

    keys: int = 0
    size: int = 0
    unsized: int = 0

    def add(self, size: int | None) -> None:
        """One more, of so many bytes."""
        self.keys += 1
        if size is None:
            self.unsized += 1
        else:
            self.size += size


class LogStatistics:
    """Counts what the location log says about the nodes of one cluster, and picks a sample of its keys."""

    def __init__(
        self,
        nodes: Collection[UUID],
        sample: int,
        dead: Collection[UUID] = (),
        choose: random.Random | None = None,
    ) -> None:
        """`sample` keys are picked, each of those that any node has with the same probability.

        What `dead` nodes have counts for themselves alone: nobody can get at it.
        """
        self.nodes = frozenset(nodes)
        self.living = self.nodes - frozenset(dead)
        self.all = Tally()
        self.held: Mapping[UUID, Tally] = {uuid: Tally() for uuid in self.nodes}
        self.lacking: Mapping[UUID, Tally] = {uuid: Tally() for uuid in self.nodes}
        self.unverifiable = 0
        """Keys on living nodes whose content git-annex cannot verify."""
        self.sample: list[Located] = []
        self._size = sample
        self._choose = choose or random.Random()

    def count(self, batch: Iterable[Located]) -> None:
        """Takes note of what the log says of some keys."""
        for each in batch:
            holders = each.holders & self.nodes
            size = each.key.content_size if holders else None
            for uuid in holders:
                self.held[uuid].add(size)
            if holders.isdisjoint(self.living):
                continue
            self.all.add(size)
            self.unverifiable += each.key.backend in _UNVERIFIABLE
            for uuid in self.nodes - holders:
                self.lacking[uuid].add(size)
            if len(self.sample) < self._size:
                self.sample.append(each)
            elif (place := self._choose.randrange(self.all.keys)) < self._size:
                self.sample[place] = each
