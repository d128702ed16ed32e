"""A plan and its steps: shown as a user would type them, carried out in order, undone if one fails.

A step checks the current state before it undoes anything, so an interrupted one is undone as far as it got. The steps
for clusters are in cluster_steps.py, those for remotes in remote_steps.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import anyio

from cluster_remote.annex.errors import AnnexError, CommandFailed
from cluster_remote.lifecycle.runner import Later, Runner, Word, as_typed, resolve_words
from cluster_remote.p2p.text import printable, visible

__all__ = ["BestEffort", "Command", "Plan", "Setting", "Step", "carry_out"]


class Step(ABC):
    """One step of a plan."""

    shares: bool = False
    """Whether it writes to the git-annex branch, which others share."""

    @abstractmethod
    def shown(self) -> str:
        """Return the command as a user would type it; empty to hide the step."""

    def verifies(self) -> str | None:
        """Return the remote whose configuration this step marks as safe for git-annex, if any."""
        return None

    def needs_consent(self) -> bool:
        """Return whether this step must not be taken before the user has agreed to the plan's questions."""
        return self.verifies() is not None

    @abstractmethod
    async def do(self, runner: Runner) -> None:
        """Carry out the step. Raises AnnexError, BadSettings."""

    async def undo(self, runner: Runner) -> None:  # noqa: B027 -- most commands leave nothing behind
        """Restore the state before this step, as far as the step got. Raises AnnexError."""


@dataclass(frozen=True)
class Plan:
    """The steps to take, in order; `notes` are for the user."""

    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    """What the user has to agree to, because somebody else may have written it."""

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.steps + other.steps, self.notes + other.notes, self.questions + other.questions)

    @property
    def verifying(self) -> tuple[str, ...]:
        """The remotes whose configuration the plan marks as safe for git-annex."""
        return tuple(name for step in self.steps if (name := step.verifies()) is not None)

    @property
    def without_consent(self) -> Plan:
        """The part of the plan that needs no answers to the questions: it marks no configuration as safe."""
        return Plan(tuple(step for step in self.steps if not step.needs_consent()), self.notes)

    @property
    def shares(self) -> bool:
        """Whether any step writes to the git-annex branch."""
        return any(step.shares for step in self.steps)

    def shown(self) -> list[str]:
        """Return the commands as a user would type them."""
        return [visible(line) for step in self.steps if (line := step.shown())]


async def carry_out(plan: Plan, runner: Runner) -> None:
    """Carry out a plan completely, or undo it if a step fails or is interrupted. Raises what the step raised."""
    begun: list[Step] = []
    try:
        for step in plan.steps:
            begun.append(step)
            await step.do(runner)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await _undo(begun, runner)
        raise


async def _undo(begun: Sequence[Step], runner: Runner) -> None:
    said = False

    def say(line: str) -> None:
        nonlocal said
        if not said:
            runner.say("Undoing what was done so far:")
            said = True
        runner.say(line)

    # The token is for the new address; a restored remote may have another one.
    quiet = Runner(runner.repository, say, gives_token=False)
    for step in reversed(begun):
        try:
            await step.undo(quiet)
        except AnnexError as error:
            say(f"cannot undo this: {printable(str(error))}")


@dataclass(frozen=True)
class Command(Step):
    """A command that leaves nothing to undo, or only what another step undoes."""

    argv: tuple[Word, ...]
    shares: bool = False
    with_token: ClassVar[bool] = False

    def shown(self) -> str:
        return as_typed(self.argv)

    async def do(self, runner: Runner) -> None:
        await runner.run(*await resolve_words(self.argv, runner), with_token=self.with_token)


@dataclass(frozen=True)
class Setting(Step):
    """A value in this repository's git configuration; None unsets it. `before` is the old value."""

    key: str
    value: str | Later | None
    before: tuple[str, ...] = ()

    def shown(self) -> str:
        return as_typed(self._argv())

    def _argv(self) -> tuple[Word, ...]:
        if self.value is None:
            return ("git", "config", "--unset-all", self.key)
        return ("git", "config", self.key, self.value)

    async def do(self, runner: Runner) -> None:
        await runner.run(*await resolve_words(self._argv(), runner))

    async def undo(self, runner: Runner) -> None:
        now = (await runner.repository.current_config()).all(self.key)
        if now == self.before:
            return
        if len(now) == len(self.before) == 1:
            # This keeps its position in the file.
            await runner.attempt("git", "config", self.key, self.before[0])
            return
        if now:
            await runner.attempt("git", "config", "--unset-all", self.key)
        for value in self.before:
            await runner.attempt("git", "config", "--add", self.key, value)


@dataclass(frozen=True)
class BestEffort(Step):
    """Steps whose failure does not fail the plan: they are undone, and the runner remembers `what` failed."""

    what: str
    steps: tuple[Step, ...]

    @property
    def shares(self) -> bool:  # type: ignore[override]
        return any(step.shares for step in self.steps)

    def shown(self) -> str:
        return "\n".join(line for step in self.steps if (line := step.shown()))

    def needs_consent(self) -> bool:
        return True

    async def do(self, runner: Runner) -> None:
        try:
            await carry_out(Plan(self.steps), runner)
        except CommandFailed:
            runner.failed.append(self.what)

    async def undo(self, runner: Runner) -> None:
        for step in reversed(self.steps):
            await step.undo(runner)
