"""Record what nodes have so that the location log ends up right despite concurrent changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cluster_remote.diagnosis.comparison import Answers, compare

if TYPE_CHECKING:
    from cluster_remote.annex.locationlog import LocationLog
    from cluster_remote.annex.locations import Located, LocationReader
    from cluster_remote.diagnosis.asking import Nodes
    from cluster_remote.p2p.key import UUID

__all__ = ["Recorded", "look_again", "record"]

# If content keeps changing while we look, leave the record to the processes that change it.
_ATTEMPTS = 4


@dataclass(frozen=True)
class Recorded:
    """A key as the log and the nodes are now, and what the log got wrong before."""

    each: Located
    answers: Answers
    before: frozenset[UUID]
    ours: frozenset[UUID] = frozenset()
    """The nodes that have it according to lines that we wrote."""
    written: bool = False

    @property
    def present(self) -> frozenset[UUID]:
        """The nodes newly listed in the log."""
        return (self.each.holders - self.before) & self.answers.keys() if self.written else frozenset()

    @property
    def absent(self) -> frozenset[UUID]:
        """The nodes no longer listed in the log."""
        return (self.before - self.each.holders) & self.answers.keys() if self.written else frozenset()


async def look_again(
    keys: Sequence[Located], nodes: Nodes, reader: LocationReader
) -> list[tuple[Located, dict[UUID, bool | None]]]:
    """Read the log again, then ask the nodes again: changes in progress are not mistakes."""
    if not keys:
        return []
    logged = await reader.read([each.key for each in keys])
    asked = await nodes.ask(keys)
    return [
        (replace(now, file=each.file), asked.about(number))
        for number, (each, now) in enumerate(zip(keys, logged, strict=True))
    ]


async def record(
    keys: Sequence[Located], nodes: Nodes, reader: LocationReader, log: LocationLog, *, absent: bool
) -> list[Recorded]:
    """Correct the location log about some keys; return all of them as they are afterwards.

    The log and the nodes are checked right before a line is written and again afterwards, until they agree: a drop or
    an upload in between is never overwritten for good. `absent` also records losses; without it, only our own lines
    that have become wrong are reverted. Raises AnnexError.
    """
    log.expect()
    found: dict[int, Recorded] = {}
    pending = list(range(len(keys)))
    for _ in range(_ATTEMPTS):
        looked = await look_again([keys[number] for number in pending], nodes, reader)
        written: list[int] = []
        for number, (each, answers) in zip(pending, looked, strict=True):
            so_far = found.get(number) or Recorded(each, answers, each.holders)
            gap = compare(each, answers, lambda _: True)
            lost = gap.missing if absent else gap.missing & so_far.ours
            if gap.unlogged or lost:
                await log.record(each.key, present=gap.unlogged, absent=lost)
                written.append(number)
            found[number] = replace(
                so_far,
                each=each,
                answers=answers,
                ours=so_far.ours - lost | gap.unlogged,
                written=so_far.written or number in written,
            )
        pending = written
        if not pending:
            break
    return [found[number] for number in range(len(keys))]
