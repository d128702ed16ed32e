"""Run the commands of a plan on the user's terminal."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import anyio

from cluster_remote.annex import child
from cluster_remote.annex.errors import AnnexError, CommandFailed
from cluster_remote.annex.repository import Repository, utf8_locale, without_token
from cluster_remote.p2p.text import printable, visible

__all__ = ["Later", "Runner", "Word", "as_typed", "resolve_words"]

# Seconds for one command of git or git-annex; the longest is a fetch over a slow connection.
_TIMEOUT = 3600.0
# Seconds for a command that undoes a step, and for a command to end after a signal.
_UNDO, _END = 60.0, 5.0


@dataclass(frozen=True)
class Later:
    """A word of a command that is only known when the command runs: `before` and a cluster's UUID."""

    cluster: str
    before: str = ""

    def __str__(self) -> str:
        return f"{self.before}$(git config annex.cluster.{self.cluster})"


Word: TypeAlias = str | Later
Say: TypeAlias = Callable[[str], None]


class Runner:
    """Runs commands visibly: each is shown as a user would type it, and has its own output.

    `gives_token` says whether commands that use the token in the environment get it.
    """

    def __init__(self, repository: Repository, say: Say, *, gives_token: bool = True) -> None:
        self.repository = repository
        self.say = say
        self._gives_token = gives_token
        self.failed: list[str] = []
        """What failed without failing the plan; see BestEffort."""

    async def run(self, *argv: str, timeout: float = _TIMEOUT, shown: str = "", with_token: bool = False) -> None:
        """Run a command to its end; `shown` is shown instead of its words; `with_token` says whether it uses the token.

        If cancelled, asks the command to end and waits for it. Raises CommandFailed, after the command itself has
        printed its error message.
        """
        self.say(f"$ {shown or visible(shlex.join(argv))}")
        environment = os.environ | utf8_locale() if with_token and self._gives_token else without_token()
        code = await self._code(argv, environment, timeout)
        if code:
            raise CommandFailed(argv, code, f"exited with code {code}; its message is above")

    async def attempt(self, *argv: str) -> None:
        """Run a command that undoes a step; report a failure instead of raising it."""
        try:
            await self.run(*argv, timeout=_UNDO)
        except CommandFailed as error:
            self.say(f"cannot undo this: {printable(str(error))}")

    async def _code(self, argv: Sequence[str], environment: Mapping[str, str], timeout: float) -> int:
        # On a terminal the command stays in our process group, so that ssh can ask for a password. Otherwise it has its
        # own group, so that all its child processes can be ended with it.
        own_group = not os.isatty(0)
        try:
            process = await anyio.open_process(
                list(argv),
                cwd=self.repository.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=None,
                stderr=None,
                start_new_session=own_group,
            )
        except OSError as error:
            raise CommandFailed(argv, None, f"cannot start: {error.strerror}") from None
        try:
            with anyio.move_on_after(timeout):
                return await process.wait()
        finally:
            await child.end(process, _END, group=own_group)
        raise CommandFailed(argv, None, f"did not finish within {timeout:g} seconds")


def as_typed(argv: Collection[Word]) -> str:
    """Return a command line as a user would type it."""
    return " ".join(str(word) if isinstance(word, Later) else shlex.quote(word) for word in argv)


async def resolve_words(argv: Collection[Word], runner: Runner) -> list[str]:
    """Replace each `Later` by its value. Raises AnnexError if that is still unknown."""
    clusters = (await runner.repository.current_config()).clusters()
    found: list[str] = []
    for word in argv:
        if isinstance(word, Later):
            if word.cluster not in clusters:
                raise AnnexError(f"git's configuration has no annex.cluster.{word.cluster}, which should be set by now")
            word = f"{word.before}{clusters[word.cluster]}"
        found.append(word)
    return found
