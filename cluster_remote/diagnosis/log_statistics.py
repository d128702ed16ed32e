"""Count what the location log says about a cluster's nodes, and sample its keys. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cluster_remote.annex.locations import Located
from cluster_remote.p2p.key import UUID

__all__ = ["LogStatistics", "Tally"]

# Backends whose keys have no checksum. Only git-annex knows about external backends.
_UNVERIFIABLE = frozenset({"WORM", "URL"})


@dataclass
class Tally:
    """A number of keys, and their total size in bytes; `unsized` of them do not say their size."""

    keys: int = 0
    size: int = 0
    unsized: int = 0

    def add(self, size: int | None) -> None:
        """Count one more key with its size in bytes."""
        self.keys += 1
        if size is None:
            self.unsized += 1
        else:
            self.size += size


class LogStatistics:
    """Counts what the location log says about the nodes of one cluster, and samples its keys."""

    def __init__(
        self,
        nodes: Collection[UUID],
        sample: int,
        dead: Collection[UUID] = (),
        choose: random.Random | None = None,
    ) -> None:
        """Sample `sample` keys among those that any node has, all with the same probability.

        The contents of `dead` nodes are inaccessible, so they are only counted for these nodes.
        """
        self.nodes = frozenset(nodes)
        self.living = self.nodes - frozenset(dead)
        self.all = Tally()
        self.held: Mapping[UUID, Tally] = {uuid: Tally() for uuid in self.nodes}
        self.lacking: Mapping[UUID, Tally] = {uuid: Tally() for uuid in self.nodes}
        self.unverifiable = 0
        """The number of keys on living nodes whose content git-annex cannot verify."""
        self.sample: list[Located] = []
        self._size = sample
        self._choose = choose or random.Random()

    def count(self, batch: Iterable[Located]) -> None:
        """Count what the log says about some keys."""
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
            elif (index := self._choose.randrange(self.all.keys)) < self._size:
                self.sample[index] = each
