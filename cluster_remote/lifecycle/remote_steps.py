"""The steps of a plan that create, enable, rename, verify or remove a remote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.errors import CommandFailed
from cluster_remote.annex.verification import pending
from cluster_remote.lifecycle.runner import Runner, as_typed
from cluster_remote.lifecycle.steps import Command, Step
from cluster_remote.p2p.text import as_command, printable

__all__ = ["Enable", "Initremote", "RemoveRemote", "Rename", "Verify"]


@dataclass(frozen=True)
class Initremote(Command):
    """A new remote."""

    name: str = field(kw_only=True)
    with_token: ClassVar[bool] = True

    async def undo(self, runner: Runner) -> None:
        await _remove_remote(self.name, runner)


async def _remove_remote(name: str, runner: Runner) -> None:
    """Remove a remote from this repository, so that its name can be used again.

    git-annex never forgets the names of verified configurations, so a private remote is renamed first.
    """
    config = await runner.repository.current_config()
    if name not in config.remotes():
        return
    uuid = config.remote(name, "annex-config-uuid") or config.remote(name, "annex-uuid")
    if uuid:
        if config.boolean(f"remote.{name}.annex-private"):
            name = await _renamed(name, _abandoned_name(name, uuid), runner)
        try:
            await runner.run("git", "annex", "disableremote", "--", name)
        except CommandFailed:
            if name not in (await runner.repository.current_config()).remotes():
                raise
    if name in (await runner.repository.current_config()).remotes():
        # A refused initremote leaves this, and older versions of git-annex have no disableremote.
        await runner.run("git", "config", "--remove-section", f"remote.{name}")


async def _renamed(old: str, new: str, runner: Runner) -> str:
    """Rename a private remote, even if git-annex remembers it as verified; return its name afterwards."""
    try:
        await runner.run("git", "annex", "renameremote", "--", old, new)
    except CommandFailed:
        return old
    await runner.run("git", "remote", "rename", "--", old, new)
    found = await pending(runner.repository, new)
    if found is not None:
        await runner.run("git", "annex", "verifyremote", "--safe", str(found.number), "--", new)
    return new


def _abandoned_name(name: str, uuid: str) -> str:
    # git-annex cannot disable a remote whose name looks like an option.
    return f"{name.lstrip('-') or 'remote'}-was-{uuid[:8]}"


@dataclass(frozen=True)
class Enable(Step):
    """Enable a remote in the git-annex branch; `restore` are its former parameters, None if it did not exist here."""

    name: str
    parameters: tuple[str, ...]
    restore: tuple[str, ...] | None
    shares: bool = False

    def shown(self) -> str:
        return as_typed(("git", "annex", "enableremote", self.name, *self.parameters))

    def needs_consent(self) -> bool:
        # git-annex reads from a remote that it enabled automatically; enabling it by name would stop that.
        return self.restore is not None

    async def do(self, runner: Runner) -> None:
        await runner.run("git", "annex", "enableremote", self.name, *self.parameters, with_token=True)

    async def undo(self, runner: Runner) -> None:
        if self.restore is None:
            await _remove_remote(self.name, runner)
        elif self.restore != self.parameters:
            await runner.attempt("git", "annex", "enableremote", self.name, *self.restore)


@dataclass(frozen=True)
class RemoveRemote(Step):
    """Remove a remote from this repository, to free its name; `restore` recreates it."""

    name: str
    restore: tuple[Step, ...] = ()

    def shown(self) -> str:
        return as_command("git annex disableremote", self.name)

    async def do(self, runner: Runner) -> None:
        await _remove_remote(self.name, runner)

    async def undo(self, runner: Runner) -> None:
        if self.name not in (await runner.repository.current_config()).remotes():
            for step in self.restore:
                await step.do(runner)


@dataclass(frozen=True)
class Rename(Step):
    """Rename a remote, in git and in git-annex's log of special remotes."""

    old: str
    new: str
    shares: bool = False

    def shown(self) -> str:
        return "\n".join(map(as_typed, self._commands(self.old, self.new)))

    @staticmethod
    def _commands(old: str, new: str) -> tuple[tuple[str, ...], ...]:
        return ("git", "annex", "renameremote", "--", old, new), ("git", "remote", "rename", "--", old, new)

    async def do(self, runner: Runner) -> None:
        for argv in self._commands(self.old, self.new):
            await runner.run(*argv)

    async def undo(self, runner: Runner) -> None:
        if self.new in (await runner.repository.current_config()).remotes():
            for argv in self._commands(self.new, self.old):
                await runner.attempt(*argv)
        else:
            await runner.attempt("git", "annex", "renameremote", "--", self.new, self.old)


# Every configuration has these, and they do not affect where content goes.
_IRRELEVANT = frozenset({"name", "sameas-name", "sameas-uuid", "autoenable"})


@dataclass(frozen=True)
class Verify(Step):
    """Tell git-annex that a remote's configuration is safe, if it is exactly the requested one.

    git-annex requires this because others may have written the configuration to the git-annex branch.
    """

    name: str
    expected: Mapping[str, str]

    def shown(self) -> str:
        return as_typed(("git", "annex", "verifyremote", self.name, "--safe", "…"))

    def verifies(self) -> str | None:
        return self.name

    async def do(self, runner: Runner) -> None:
        found = await pending(runner.repository, self.name)
        if found is None:
            return
        expected = {"type": "external", "externaltype": "cluster", **self.expected}
        if not _same(found.configuration, expected):
            raise BadSettings(
                f"the configuration of {self.name!r} is not the requested one, so it stays unverified: "
                f"{printable(found.configuration)}. Somebody may have changed it through the git-annex branch. Check "
                f"and verify it yourself: {as_command('git annex verifyremote', self.name)}"
            )
        await runner.run("git", "annex", "verifyremote", self.name, "--safe", str(found.number))


def _same(shown: str, expected: Mapping[str, str]) -> bool:
    """Return whether git-annex shows exactly these parameters. It separates them by spaces, which they may contain."""

    def words(text: str) -> set[str]:
        return {word for word in text.split() if word.partition("=")[0] not in _IRRELEVANT}

    there, wanted = words(shown), words(" ".join(f"{key}={value}" for key, value in expected.items()))
    # git-annex does not store, hence not show, the encryption of a remote made with --sameas.
    return there | {word for word in wanted if word.startswith("encryption=")} == wanted
