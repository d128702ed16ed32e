"""Decide which stretch of the content to fetch from which node when several send it at once. Pure.

GET has an offset but no end: a node is cut off at the end of its stretch, which costs a new connection and the data in
flight. So stretches are large at first and shrink with the rest of the content. They are assigned in order, so that
little early data has to be kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["AHEAD", "LEAST", "Plan", "Stretch"]

T = TypeVar("T")

# The smallest stretch, in bytes and seconds, that makes a new connection worthwhile.
LEAST, _LEAST_SECONDS = 2 * 1024 * 1024, 2.0
# The largest stretch in bytes, and the most to fetch ahead of the first gap.
_MOST, AHEAD = 64 * 1024 * 1024, 256 * 1024 * 1024
# The fraction of its share that a node gets at first.
_FRACTION = 0.7
# Seconds without a byte after which a stretch counts as stuck if another node is idle.
_STUCK = 3.0


@dataclass(eq=False, slots=True)
class Stretch(Generic[T]):
    """Bytes `start` to `end` of the content, for one `node`; those before `position` have arrived."""

    node: T
    start: int
    end: int
    began: float
    position: int = field(init=False)
    moved: float = field(init=False)

    def __post_init__(self) -> None:
        self.position = self.start
        self.moved = self.began

    @property
    def left(self) -> int:
        return self.end - self.position

    def received(self, count: int, now: float) -> None:
        """Note that the next `count` bytes have arrived."""
        self.position += count
        self.moved = now

    def rate(self, now: float) -> float:
        """Return the rate so far in bytes per second; 0 if it is stuck."""
        if now - self.moved > _STUCK or now <= self.began:
            return 0.0
        return (self.position - self.start) / (now - self.began)


class Plan(Generic[T]):
    """The stretches of the content from byte `frontier`, up to which the file is complete, to `end`.

    Attributes:
        stretches: those not in the file yet, in order; together with the unassigned bytes they leave no gap.
    """

    def __init__(self, frontier: int, end: int) -> None:
        self.frontier = frontier
        self.end = end
        self.stretches: list[Stretch[T]] = []
        self._next = frontier
        self._given_back: list[tuple[int, int]] = []

    def take(self, node: T, rate: float, total: float, now: float) -> Stretch[T] | None:
        """Assign a stretch to a node with this `rate`, in bytes per second; `total` is the rate of all nodes.

        Returns None if no stretch is worth its while.
        """
        if self._given_back:
            start, end = self._given_back[0]
            last = start + self._length(end - start, rate, total)
            self._given_back[0] = last, end
            if last == end:
                del self._given_back[0]
        else:
            room = min(self.end, self.frontier + AHEAD) - self._next
            if room <= 0:
                return self._take_over(node, rate, now)
            start = self._next
            last = start + self._length(room, rate, total)
            self._next = last
        return self._insert(Stretch(node, start, last, now))

    def _length(self, room: int, rate: float, total: float) -> int:
        missing = (
            self.end
            - self._next
            + sum(end - start for start, end in self._given_back)
            + sum(each.left for each in self.stretches)
        )
        # With this share each, all nodes would finish at the same time.
        share = missing * rate / max(total, rate, 1.0)
        # A node's future rate is uncertain, so keep something for later if that pays.
        part = _FRACTION * share if _FRACTION * share > rate * _LEAST_SECONDS else share
        wanted = max(LEAST, int(min(_MOST, part)))
        return room if wanted + LEAST > room else wanted

    def _take_over(self, node: T, rate: float, now: float) -> Stretch[T] | None:
        """Take the end of the stretch that would otherwise take longest; all of it if it is stuck."""
        slowest: Stretch[T] | None = None
        longest = _LEAST_SECONDS
        for stretch in self.stretches:
            theirs = stretch.rate(now)
            if not theirs and now - stretch.moved <= _STUCK:
                # It has only just been requested.
                continue
            seconds = stretch.left / theirs if theirs else now - stretch.moved
            if stretch.left and seconds > longest:
                slowest, longest = stretch, seconds
        if slowest is None:
            return None
        theirs = slowest.rate(now)
        middle = slowest.end - int(slowest.left * rate / (rate + theirs)) if theirs else slowest.position
        if theirs and slowest.end - middle < LEAST:
            return None
        end, slowest.end = slowest.end, middle
        return self._insert(Stretch(node, middle, end, now))

    def _insert(self, stretch: Stretch[T]) -> Stretch[T]:
        index = len(self.stretches)
        while index and self.stretches[index - 1].start >= stretch.start:
            index -= 1
        self.stretches.insert(index, stretch)
        return stretch

    def extend(self, stretch: Stretch[T]) -> bool:
        """Extend a complete stretch if the bytes after it are unassigned: this needs no new connection."""
        end = min(self.end, self.frontier + AHEAD, stretch.end + LEAST)
        if self._given_back or stretch.end != self._next or end <= stretch.end:
            return False
        self._next = stretch.end = end
        return True

    def give_back(self, stretch: Stretch[T]) -> None:
        """Let others fetch the rest of a stretch."""
        if stretch.left:
            self._given_back.append((stretch.position, stretch.end))
            self._given_back.sort()
            stretch.end = stretch.position

    def first(self) -> Stretch[T] | None:
        """Return the stretch that continues the file; None if nothing that follows has arrived."""
        while self.stretches:
            stretch = self.stretches[0]
            if stretch.end > self.frontier:
                return stretch if stretch.start <= self.frontier < stretch.position else None
            del self.stretches[0]
        return None
