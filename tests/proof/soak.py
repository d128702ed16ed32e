"""`python -m tests.proof.soak --way served --steps 2000 --seed 1`: thousands of steps, and what they violated.

The steps go in episodes, each in a world of its own that has its seed in the seed of the run and its number; so
`--seed 1 --episode 7` takes the same steps again, and `--replay "kind:number,…"` any list of them. A list that violates
something is made smaller with `--shrink`.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.proof.machine import Machine, Step, steps
from tests.proof.world import WAYS, World, worlds

EPISODE = 60
"""Steps in one world."""


@dataclass(frozen=True)
class Violation:
    """What went wrong, after which steps, and what they did in words."""

    faults: list[str]
    steps: list[Step]
    trail: list[str]

    def __str__(self) -> str:
        return "\n".join([*self.trail[-8:], *("** " + fault for fault in self.faults), f"replay: {self.replay}"])

    @property
    def replay(self) -> str:
        """The value for --replay."""
        return ",".join(map(str, self.steps))


def episode(world: World, chosen: Sequence[Step]) -> Violation | None:
    """Take steps in a fresh world until one violates something."""
    machine = Machine(world)
    for number, step in enumerate(chosen, 1):
        faults = machine.take(step)
        if faults:
            return Violation(faults, list(chosen[:number]), machine.trail)
    return None


def chosen_for(seed: int, number: int, kinds: Sequence[str] = (), count: int = EPISODE) -> list[Step]:
    """Return the steps of one episode, optionally only of certain kinds."""
    wanted = (step for step in steps(f"{seed} {number}") if not kinds or step.kind in kinds)
    return list(itertools.islice(wanted, count))


def shrink(fresh: Iterator[World], violation: Violation) -> Violation:
    """Drop steps not needed for a violation of the same kind; timing-dependent ones may not recur."""
    best = violation
    size = max(1, len(best.steps) // 2)
    while True:
        position = 0
        while position < len(best.steps) - 1:
            rest = best.steps[:position] + best.steps[min(position + size, len(best.steps) - 1) :]
            found = episode(next(fresh), rest)
            if found is None:
                position += size
            else:
                best = found
                print(f"  {len(best.steps)} steps: {best.faults[0]}", flush=True)
        if size == 1:
            return best
        size = max(1, size // 2)


def _end(signum: int, frame: object) -> None:
    # timeout(1) sends it twice; what is cleared away meanwhile must not be broken off.
    signal.signal(signum, signal.SIG_IGN)
    sys.exit(128 + signum)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if something was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof.soak", description=__doc__)
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--episode", type=int, help="only this one")
    parser.add_argument("--kinds", default="", help="take only steps of these kinds: change,damage,…")
    parser.add_argument("--replay", help="steps to take, as printed with a violation")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--mutation", default="", help="a fault that the program is given: see mutants.py")
    parser.add_argument("--violations", type=int, default=10, help="how many to print before giving up")
    parser.add_argument("--trail", action="store_true", help="print every step")
    given = parser.parse_args(arguments)

    # So that a world is cleared away, also where a shell started this in the background.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    soak = Soak(given)
    begun = time.monotonic()
    try:
        soak.run()
    finally:
        seconds = time.monotonic() - begun
        mutation = f", mutation {given.mutation}" if given.mutation else ""
        print(
            f"{given.way}{mutation}: seed {given.seed}, {soak.taken} steps in {seconds:.0f} s "
            f"({soak.taken / seconds:.1f} a second), {soak.found} violations",
            flush=True,
        )
    return 1 if soak.found else 0


class Soak:
    """A run of many steps.

    Attributes:
        taken: how many steps were taken so far.
        found: how many violations were found.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.taken = 0
        self.found = 0
        self._given = given

    def run(self) -> None:
        """Take the steps, one episode after the other."""
        given = self._given
        with worlds(given.way, given.mutation) as fresh:
            for number in itertools.count() if given.episode is None else [given.episode]:
                self._episode(fresh, number)
                if number % 5 == 4:
                    print(f"{self.taken} steps, {self.found} violations", file=sys.stderr, flush=True)
                if self.taken >= given.steps or self.found >= given.violations or given.replay:
                    return

    def _episode(self, fresh: Iterator[World], number: int) -> None:
        given = self._given
        kinds = given.kinds.split(",") if given.kinds else []
        chosen = chosen_for(given.seed, number, kinds)[: given.steps - self.taken]
        if given.replay:
            chosen = [Step(kind, int(n)) for kind, n in (word.rsplit(":", 1) for word in given.replay.split(","))]
        machine = Machine(next(fresh))
        for place, step in enumerate(chosen, 1):
            faults = machine.take(step)
            self.taken += 1
            if given.trail:
                print(machine.trail[-1], flush=True)
            if faults:
                self.found += 1
                violation = Violation(faults, chosen[:place], machine.trail)
                print(
                    f"VIOLATION in step {self.taken}, --seed {given.seed} --episode {number}\n{violation}", flush=True
                )
                if given.shrink:
                    print(shrink(fresh, violation))
                return


if __name__ == "__main__":
    sys.exit(main())
