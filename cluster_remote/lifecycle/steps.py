"""The steps of a plan, and carrying them out: shown as a user would type them, undone if one fails.

A step checks the current state before it undoes anything, so an interrupted one is undone as far as it got.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import anyio

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex import child
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.branchwrite import record_nodes
from cluster_remote.annex.errors import AnnexError, CommandFailed
from cluster_remote.annex.merge import refresh
from cluster_remote.annex.repository import Repository, utf8_locale
from cluster_remote.annex.verification import pending
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import printable, visible

__all__ = [
    "Check",
    "Command",
    "Describe",
    "Enable",
    "Guard",
    "InitCluster",
    "Initremote",
    "Later",
    "Optional",
    "Plan",
    "Record",
    "Rename",
    "Runner",
    "Setting",
    "Step",
    "TakeOut",
    "Verify",
    "carry_out",
]

# Seconds for one command of git or git-annex; the longest is a fetch over a slow connection.
_TIMEOUT = 3600.0
# Seconds for a command that undoes something, and for one that was asked to end.
_UNDO, _END = 60.0, 5.0


@dataclass(frozen=True)
class Later:
    """A word of a command that is only known when the command runs: a cluster's UUID after `before`."""

    cluster: str
    before: str = ""

    def __str__(self) -> str:
        return f"{self.before}$(git config annex.cluster.{self.cluster})"


Word: TypeAlias = str | Later
Say: TypeAlias = Callable[[str], None]


class Runner:
    """Runs commands visibly: each is shown as a user would type it, and has its own output."""

    def __init__(self, repository: Repository, say: Say) -> None:
        self.repository = repository
        self.say = say
        self.failed: list[str] = []
        """The optional steps that failed."""

    async def run(self, *argv: str, timeout: float = _TIMEOUT, shown: str = "") -> None:
        """Run a command to its end; `shown` is shown instead of its words.

        Raises CommandFailed, after the command itself has printed its error message.

        If cancelled, asks the command to end and waits until it has.
        """
        self.say(f"$ {shown or visible(shlex.join(argv))}")
        code = await self._code(argv, timeout)
        if code:
            raise CommandFailed(argv, code, f"exited with code {code}; its message is above")

    async def attempt(self, *argv: str) -> None:
        """Run a command that undoes a step: a failure is reported, and the rest goes on."""
        try:
            await self.run(*argv, timeout=_UNDO)
        except CommandFailed as error:
            self.say(f"cannot undo this: {printable(str(error))}")

    async def _code(self, argv: Sequence[str], timeout: float) -> int:
        # On a terminal it stays in our process group, so that ssh can ask for a password. Otherwise it gets its own
        # group, so that everything it started can be ended with it.
        alone = not os.isatty(0)
        try:
            process = await anyio.open_process(
                list(argv),
                cwd=self.repository.cwd,
                env=os.environ | utf8_locale(),
                stdin=subprocess.DEVNULL,
                stdout=None,
                stderr=None,
                start_new_session=alone,
            )
        except OSError as error:
            raise CommandFailed(argv, None, f"cannot start: {error.strerror}") from None
        try:
            with anyio.move_on_after(timeout):
                return await process.wait()
        finally:
            await child.end(process, _END, group=alone)
        raise CommandFailed(argv, None, f"did not finish within {timeout:g} seconds")


class Step(ABC):
    """One step of a plan."""

    shares: bool = False
    """Whether it writes to the git-annex branch, which others share."""

    @abstractmethod
    def shown(self) -> str:
        """How to show it beforehand; empty to hide it."""

    @abstractmethod
    async def do(self, runner: Runner) -> None:
        """Do it. Raises AnnexError, BadSettings."""

    async def undo(self, runner: Runner) -> None:  # noqa: B027 -- most commands leave nothing behind
        """Restore the state before this step, as far as the step got. Raises AnnexError."""


@dataclass(frozen=True)
class Plan:
    """What to do, in order; `notes` are for the user."""

    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    """What the user has to agree to, because somebody else may have written it."""

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.steps + other.steps, self.notes + other.notes, self.questions + other.questions)

    @property
    def verifying(self) -> tuple[str, ...]:
        """The remotes whose configuration the plan marks as safe for git-annex."""
        return tuple(step.name for step in self.steps if isinstance(step, Verify))

    @property
    def unverified(self) -> Plan:
        """Return the same plan without marking any configuration as safe, and without contacting anybody."""
        # git-annex reads from a remote that it enabled automatically; enabling it by name would stop that.
        return Plan(
            tuple(
                step
                for step in self.steps
                if not isinstance(step, (Verify, Optional))
                and not (isinstance(step, Enable) and step.again is not None)
            ),
            self.notes,
        )

    @property
    def shares(self) -> bool:
        """Whether any step writes to the git-annex branch."""
        return any(step.shares for step in self.steps)

    def shown(self) -> list[str]:
        """Return the commands as a user would type them."""
        return [visible(line) for step in self.steps if (line := step.shown())]


async def carry_out(plan: Plan, runner: Runner) -> None:
    """Carry out all of a plan, or undo it if a step fails or is interrupted. Raises what the step raised."""
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

    quiet = Runner(runner.repository, say)
    for step in reversed(begun):
        try:
            await step.undo(quiet)
        except AnnexError as error:
            say(f"cannot undo this: {printable(str(error))}")


def _words(argv: Collection[Word]) -> str:
    return " ".join(str(word) if isinstance(word, Later) else shlex.quote(word) for word in argv)


async def _resolved(argv: Collection[Word], runner: Runner) -> list[str]:
    clusters = (await runner.repository.current_config()).clusters()
    found: list[str] = []
    for word in argv:
        if isinstance(word, Later):
            if word.cluster not in clusters:
                raise AnnexError(f"git's configuration has no annex.cluster.{word.cluster}, which should be set by now")
            word = f"{word.before}{clusters[word.cluster]}"
        found.append(word)
    return found


@dataclass(frozen=True)
class Command(Step):
    """A command that leaves nothing to undo, or only what another step undoes."""

    argv: tuple[Word, ...]
    shares: bool = False

    def shown(self) -> str:
        return _words(self.argv)

    async def do(self, runner: Runner) -> None:
        await runner.run(*await _resolved(self.argv, runner))


@dataclass(frozen=True)
class Setting(Step):
    """A value in this repository's git configuration; None unsets it. `before` is the old value."""

    key: str
    value: str | Later | None
    before: tuple[str, ...] = ()

    def shown(self) -> str:
        return _words(self._argv())

    def _argv(self) -> tuple[Word, ...]:
        if self.value is None:
            return ("git", "config", "--unset-all", self.key)
        return ("git", "config", self.key, self.value)

    async def do(self, runner: Runner) -> None:
        await runner.run(*await _resolved(self._argv(), runner))

    async def undo(self, runner: Runner) -> None:
        now = (await runner.repository.current_config()).all(self.key)
        if now == self.before:
            return
        if len(now) == len(self.before) == 1:
            # This keeps its place in the file.
            await runner.attempt("git", "config", self.key, self.before[0])
            return
        if now:
            await runner.attempt("git", "config", "--unset-all", self.key)
        for value in self.before:
            await runner.attempt("git", "config", "--add", self.key, value)


@dataclass(frozen=True)
class InitCluster(Step):
    """A new cluster, under a name that this repository does not use yet."""

    name: str
    shares: bool = True

    def shown(self) -> str:
        return f"git annex initcluster {self.name}"

    async def do(self, runner: Runner) -> None:
        await runner.run("git", "annex", "initcluster", self.name)

    async def undo(self, runner: Runner) -> None:
        # Its description stays in uuid.log; the next setup with this name reuses this cluster.
        if self.name in (await runner.repository.current_config()).clusters():
            await runner.attempt("git", "config", "--unset-all", f"annex.cluster.{self.name}")


@dataclass(frozen=True)
class Describe(Step):
    """The description of a cluster in uuid.log; `before` is the old one."""

    uuid: UUID
    words: str
    before: str
    shares: bool = True

    def shown(self) -> str:
        return _words(("git", "annex", "describe", self.uuid.text, self.words))

    async def do(self, runner: Runner) -> None:
        await runner.run("git", "annex", "describe", self.uuid.text, self.words)

    async def undo(self, runner: Runner) -> None:
        await runner.attempt("git", "annex", "describe", self.uuid.text, self.before)


@dataclass(frozen=True)
class Guard(Step):
    """Does nothing, but undoes what later steps record about clusters and about what is behind this repository.

    It is the first step that changes the configuration, so it is undone last.
    """

    uuid: UUID
    logs: BranchLogs

    def shown(self) -> str:
        return ""

    async def do(self, runner: Runner) -> None:
        """Nothing."""

    async def undo(self, runner: Runner) -> None:
        await refresh(runner.repository)
        now = await BranchLogs.read(runner.repository)
        if now.proxied.get(self.uuid, {}) != self.logs.proxied.get(self.uuid, {}):
            await runner.attempt("git", "annex", "updateproxy")
        for cluster in now.clusters.clusters():
            nodes = self.logs.clusters.nodes(cluster)
            if now.clusters.nodes(cluster) != nodes:
                await record_nodes(runner.repository, cluster, nodes)


@dataclass(frozen=True)
class Record(Step):
    """The nodes of a cluster in cluster.log, for when `git annex updatecluster` would lose some of them."""

    cluster: UUID | Later
    nodes: frozenset[UUID]
    why: str
    shares: bool = True

    def shown(self) -> str:
        return f"# {self.why}: write the {len(self.nodes)} nodes of {self.cluster} to cluster.log"

    async def do(self, runner: Runner) -> None:
        runner.say(self.shown())
        cluster = self.cluster
        if isinstance(cluster, Later):
            cluster = UUID.parse((await _resolved([cluster], runner))[0])
        await record_nodes(runner.repository, cluster, self.nodes)


@dataclass(frozen=True)
class Check(Step):
    """Compares cluster.log with the request: git-annex only warns when it does not accept a node."""

    cluster: str
    nodes: frozenset[UUID]

    def shown(self) -> str:
        return ""

    async def do(self, runner: Runner) -> None:
        await refresh(runner.repository)
        logs = await BranchLogs.read(runner.repository)
        config = await runner.repository.current_config()
        uuid = config.clusters().get(self.cluster)
        listed = frozenset[UUID]() if uuid is None else logs.clusters.nodes(uuid)
        if listed == self.nodes:
            return
        names = {config.remote(name, "annex-uuid"): name for name in config.remotes()}

        def words(uuids: frozenset[UUID]) -> str:
            return ", ".join(
                sorted(names.get(each.text) or printable(logs.descriptions.get(each, each.text)) for each in uuids)
            )

        if self.nodes - listed:
            raise AnnexError(
                f"git-annex did not accept {words(self.nodes - listed)} as a node of the cluster {self.cluster}; the "
                "reason is above"
            )
        raise AnnexError(
            f"{words(listed - self.nodes)} is still a node of the cluster {self.cluster}; the reason is above"
        )


@dataclass(frozen=True)
class Optional(Step):
    """Steps that a plan can do without. If one fails they are undone, and the runner remembers `what`."""

    what: str
    steps: tuple[Step, ...]

    @property
    def shares(self) -> bool:  # type: ignore[override]
        return any(step.shares for step in self.steps)

    def shown(self) -> str:
        return "\n".join(line for step in self.steps if (line := step.shown()))

    async def do(self, runner: Runner) -> None:
        try:
            await carry_out(Plan(self.steps), runner)
        except CommandFailed:
            runner.failed.append(self.what)

    async def undo(self, runner: Runner) -> None:
        for step in reversed(self.steps):
            await step.undo(runner)


@dataclass(frozen=True)
class Initremote(Command):
    """A new remote."""

    name: str = field(kw_only=True)

    async def undo(self, runner: Runner) -> None:
        await _take_out(self.name, runner)


async def _take_out(name: str, runner: Runner) -> None:
    """Remove a remote from this repository, and make sure that a private one frees its name.

    git-annex never forgets the names of verified configurations, so the remote is renamed first.
    """
    config = await runner.repository.current_config()
    if name not in config.remotes():
        return
    uuid = config.remote(name, "annex-config-uuid") or config.remote(name, "annex-uuid")
    if uuid:
        if config.boolean(f"remote.{name}.annex-private"):
            name = await _renamed(name, _left_name(name, uuid), runner)
        try:
            await runner.run("git", "annex", "disableremote", name)
        except CommandFailed:
            if name not in (await runner.repository.current_config()).remotes():
                raise
    if name in (await runner.repository.current_config()).remotes():
        # Left by a refused initremote, or by an older git-annex, which has no disableremote.
        await runner.run("git", "config", "--remove-section", f"remote.{name}")


async def _renamed(old: str, new: str, runner: Runner) -> str:
    """Rename a private remote, even if git-annex remembers it as verified; return its name afterwards."""
    try:
        await runner.run("git", "annex", "renameremote", old, new)
    except CommandFailed:
        return old
    await runner.run("git", "remote", "rename", old, new)
    found = await pending(runner.repository, new)
    if found is not None:
        await runner.run("git", "annex", "verifyremote", new, "--safe", str(found.number))
    return new


def _left_name(name: str, uuid: str) -> str:
    return f"{name}-was-{uuid[:8]}"


@dataclass(frozen=True)
class Enable(Step):
    """Enable a remote in the git-annex branch; `again` restores what it had before, None: it did not exist here."""

    name: str
    parameters: tuple[str, ...]
    again: tuple[str, ...] | None
    shares: bool = False

    def shown(self) -> str:
        return _words(("git", "annex", "enableremote", self.name, *self.parameters))

    async def do(self, runner: Runner) -> None:
        await runner.run("git", "annex", "enableremote", self.name, *self.parameters)

    async def undo(self, runner: Runner) -> None:
        if self.again is None:
            await _take_out(self.name, runner)
        elif self.again != self.parameters:
            await runner.attempt("git", "annex", "enableremote", self.name, *self.again)


@dataclass(frozen=True)
class TakeOut(Step):
    """Remove a remote from this repository, to free its name; `again` recreates it."""

    name: str
    again: tuple[Step, ...] = ()

    def shown(self) -> str:
        return f"git annex disableremote {shlex.quote(self.name)}"

    async def do(self, runner: Runner) -> None:
        await _take_out(self.name, runner)

    async def undo(self, runner: Runner) -> None:
        if self.name not in (await runner.repository.current_config()).remotes():
            for step in self.again:
                await step.do(runner)


@dataclass(frozen=True)
class Rename(Step):
    """A remote's new name, in git and in git-annex's log of special remotes."""

    old: str
    new: str
    shares: bool = False

    def shown(self) -> str:
        return "\n".join(map(_words, self._commands(self.old, self.new)))

    @staticmethod
    def _commands(old: str, new: str) -> tuple[tuple[str, ...], ...]:
        return ("git", "annex", "renameremote", old, new), ("git", "remote", "rename", old, new)

    async def do(self, runner: Runner) -> None:
        for argv in self._commands(self.old, self.new):
            await runner.run(*argv)

    async def undo(self, runner: Runner) -> None:
        if self.new in (await runner.repository.current_config()).remotes():
            for argv in self._commands(self.new, self.old):
                await runner.attempt(*argv)
        else:
            await runner.attempt("git", "annex", "renameremote", self.new, self.old)


# Every configuration has these, and they don't affect where contents go.
_OF_NO_ACCOUNT = frozenset({"name", "sameas-name", "sameas-uuid", "autoenable"})


@dataclass(frozen=True)
class Verify(Step):
    """Tells git-annex that a remote's configuration is safe, if all of it is what was requested.

    git-annex asks because a configuration may come from somebody else, through the git-annex branch.
    """

    name: str
    expected: Mapping[str, str]

    def shown(self) -> str:
        return _words(("git", "annex", "verifyremote", self.name, "--safe", "…"))

    async def do(self, runner: Runner) -> None:
        found = await pending(runner.repository, self.name)
        if found is None:
            return
        expected = {"type": "external", "externaltype": "cluster", **self.expected}
        if not _same(found.configuration, expected):
            raise BadSettings(
                f"the configuration of {self.name!r} is not the requested one, so it stays unverified: "
                f"{printable(found.configuration)}. Somebody may have changed it through the git-annex branch. Check "
                f"and verify it yourself: {shlex.join(('git', 'annex', 'verifyremote', self.name))}"
            )
        await runner.run("git", "annex", "verifyremote", self.name, "--safe", str(found.number))


def _same(shown: str, expected: Mapping[str, str]) -> bool:
    """Return whether git-annex shows exactly these parameters. It separates them by spaces, which they may contain."""

    def words(text: str) -> set[str]:
        return {word for word in text.split() if word.partition("=")[0] not in _OF_NO_ACCOUNT}

    there, wanted = words(shown), words(" ".join(f"{key}={value}" for key, value in expected.items()))
    # The encryption of a remote that is the same as another is not stored, so it is not shown.
    return there | {word for word in wanted if word.startswith("encryption=")} == wanted
