"""Find the git repository, read its configuration, and run commands in it.

git-annex starts a special remote with GIT_DIR and GIT_WORK_TREE set. A child that works in this repository needs them
(made absolute, because it may run in another directory); a child that works in another repository must not see them, or
it would use the wrong one. So no child is started with the inherited environment as it is.
"""

from __future__ import annotations

import locale
import os
import time
from collections.abc import Callable, Collection, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import anyio

from cluster_remote.annex import TOKEN_VARIABLE, child
from cluster_remote.annex.errors import NotARepository, NotInitialised
from cluster_remote.annex.filestate import FileState, state_of
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.waiting import Completed, run_and_wait
from cluster_remote.p2p.key import UUID, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from anyio import Lock

__all__ = ["LOCAL_VARIABLES", "Repository", "foreign_environment", "utf8_locale", "without_token"]

# Seconds after which the configuration is read again even if no file has changed.
_CONFIG_AGE = 30.0
# Seconds for a git command that only reads files of the repository.
_QUICK = 30.0
# The commands that print the git directory and the work tree.
_LOCATE = ("git", "rev-parse", "--absolute-git-dir"), ("git", "rev-parse", "--show-toplevel")


LOCAL_VARIABLES = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_CONFIG",
        "GIT_CONFIG_COUNT",
        "GIT_CONFIG_PARAMETERS",
        "GIT_DIR",
        "GIT_GRAFT_FILE",
        "GIT_IMPLICIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_INTERNAL_SUPER_PREFIX",
        "GIT_NO_REPLACE_OBJECTS",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_REFERENCE_BACKEND",
        "GIT_REPLACE_REF_BASE",
        "GIT_SHALLOW_FILE",
        "GIT_WORK_TREE",
    }
)
"""The environment variables that tie git to one repository: `git rev-parse --local-env-vars` of any version.

A test compares them with those of the installed git.
"""


@cache
def utf8_locale() -> dict[str, str]:
    """Return the additional variables that give children a UTF-8 locale.

    In any other locale, git-annex drops non-ASCII bytes from the paths that it passes to git (observed with git-annex
    10.20261026).
    """
    # Ask for the locale in effect, not the environment: it may name a locale that this machine does not have.
    codeset = locale.nl_langinfo(locale.CODESET).upper().replace("-", "")
    return {} if codeset == "UTF8" else {"LC_ALL": "C.UTF-8"}


def without_token() -> dict[str, str]:
    """Return the environment for children, without our token."""
    return {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE} | utf8_locale()


def foreign_environment() -> dict[str, str]:
    """Return the environment for a child that works in ANOTHER repository, without references to this one."""
    # The numbered variables belong to GIT_CONFIG_COUNT; git does not list them.
    return {
        name: value
        for name, value in without_token().items()
        if name not in LOCAL_VARIABLES and not name.startswith(("GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_"))
    }


class _ConfigFiles(NamedTuple):
    """The states of the files that the configuration was read from. `read` is in seconds of the monotonic clock."""

    states: dict[Path, FileState | None]
    read: float

    def are_unchanged(self) -> bool:
        # An included file that did not exist at that time is not listed here, hence the age limit.
        is_recent = time.monotonic() - self.read < _CONFIG_AGE
        return is_recent and all(state_of(file) == before for file, before in self.states.items())


class Repository:
    """One git repository on this machine. `git_dir` is absolute; `cwd` is where its children run (None: here).

    `work_tree` is None if there is none, or if git should determine it.
    """

    def __init__(self, git_dir: Path, cwd: Path | None = None, work_tree: Path | None = None) -> None:
        self.git_dir = git_dir if git_dir.is_absolute() else ((cwd or Path.cwd()) / git_dir).resolve()
        self.cwd = cwd
        self.work_tree = work_tree
        self._last_read: GitConfig | None = None
        self._reading: Lock | None = None
        self._config_files: _ConfigFiles | None = None

    @classmethod
    def here(cls, cwd: Path | None = None) -> Repository:
        """Find the repository that git uses in `cwd` (None: the working directory), before an event loop runs.

        Respects GIT_DIR. Raises NotARepository, CommandFailed.
        """
        base = (cwd or Path.cwd()).resolve()
        environment = without_token()
        return cls._found(base, *(run_and_wait(argv, cwd=base, env=environment, timeout=_QUICK) for argv in _LOCATE))

    @classmethod
    async def find(cls, cwd: Path | None = None) -> Repository:
        """Do the same as `here` in an event loop. Raises NotARepository, CommandFailed."""
        base = (cwd or Path.cwd()).resolve()
        environment = without_token()
        return cls._found(
            base,
            *[await child.run(argv, cwd=base, env=environment, timeout=_QUICK, accept=None) for argv in _LOCATE],
        )

    @classmethod
    def _found(cls, base: Path, git_dir: Completed, work_tree: Completed) -> Repository:
        if git_dir.returncode != 0:
            raise NotARepository(
                f"there is no usable git repository at {base}: run this inside one "
                f"(git init && git annex init makes one). git says: {git_dir.complaint}"
            )
        # A bare repository has no work tree; nor does git report one inside the git directory.
        tree = Path(_line(work_tree.stdout)) if work_tree.returncode == 0 else None
        return cls(Path(_line(git_dir.stdout)), base, tree)

    @classmethod
    def of_remote(cls, gitdir: str, cwd: Path | None = None) -> Repository:
        """Return the repository for git-annex's answer to GETGITDIR, which is relative to the working directory.

        Raises NotARepository if there is no such directory.
        """
        base = (cwd or Path.cwd()).resolve()
        git_dir = (base / gitdir).resolve()
        if not git_dir.exists():
            raise NotARepository(f"git-annex says that its repository is {git_dir}, but that does not exist")
        named = os.environ.get("GIT_WORK_TREE")
        return cls(git_dir, base, (base / named).resolve() if named else None)

    @property
    def directory(self) -> Path:
        """Return the repository's directory: the work tree, or the git directory if it is bare."""
        return self.work_tree or self.git_dir

    @property
    def working_directory(self) -> Path:
        """Return the directory where children run."""
        return self.cwd or Path.cwd()

    def environment(self) -> dict[str, str]:
        """Return the environment for children that work IN this repository."""
        environment = without_token()
        environment["GIT_DIR"] = str(self.git_dir)
        if self.work_tree is None:
            environment.pop("GIT_WORK_TREE", None)
        else:
            # With GIT_DIR alone, git assumes that the working directory is the top of the work tree.
            environment["GIT_WORK_TREE"] = str(self.work_tree)
        return environment

    @cached_property
    def common_dir(self) -> Path:
        """Return the directory that all work trees of a repository share; usually the git directory itself.

        See `commondir` in gitrepository-layout(5). Raises OSError if that file cannot be read.
        """
        named = os.environ.get("GIT_COMMON_DIR")
        if named is not None:
            return (self.working_directory / named).resolve()
        try:
            common = _line((self.git_dir / "commondir").read_bytes())
        except FileNotFoundError:
            return self.git_dir.resolve()
        return (self.git_dir / common).resolve()

    @property
    def annex_dir(self) -> Path:
        """Return git-annex's directory with the journal, credentials and objects."""
        return self.common_dir / "annex"

    def config(self) -> GitConfig:
        """Return the configuration as it is now, before an event loop runs. Raises CommandFailed."""
        self._last_read = GitConfig.read(cwd=self.cwd, env=self.environment())
        return self._last_read

    async def current_config(self) -> GitConfig:
        """Return the current configuration; run git only if one of the files has changed.

        Does not block the event loop; concurrent callers share one answer. Raises CommandFailed.
        """
        if self._reading is None:
            self._reading = anyio.Lock()
        async with self._reading:
            read = self._last_read
            if read is None or self._config_files is None or not self._config_files.are_unchanged():
                began = time.monotonic()
                # Take the states before git reads the files, so that a change in between is noticed next time.
                known = self._usual_files() if self._config_files is None else self._config_files.states
                before = {file: state_of(file) for file in known}
                done = await self.run("git", "config", "--list", "--show-origin", "-z", timeout=_QUICK)
                read, files = GitConfig.parse_with_origins(done.stdout)
                self._last_read = read
                found = {file: state_of(file) for file in (self.working_directory / name for name in files)}
                self._config_files = _ConfigFiles({**found, **before}, began)
        return read

    def _usual_files(self) -> list[Path]:
        """Return the files that git usually reads, even if missing, and HEAD, for `includeIf "onbranch:"`."""
        home = Path(os.environ.get("HOME", "/"))
        user = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return [
            self.common_dir / "config",
            self.git_dir / "config.worktree",
            self.git_dir / "HEAD",
            home / ".gitconfig",
            user / "git" / "config",
        ]

    @cached_property
    def uuid(self) -> UUID:
        """Return the repository's git-annex UUID, which never changes. Raises NotInitialised.

        In an event loop, use `find_uuid` the first time.
        """
        text = (self._last_read or self.config()).get("annex.uuid") or ""
        try:
            return UUID(text)
        except ValueError:
            what = f"annex.uuid is {text[:64]!r}" if text else "annex.uuid is not set"
            raise NotInitialised(
                f"{self.directory} is not a repository of git-annex ({what}): run git annex init in it"
            ) from None

    async def find_uuid(self) -> UUID:
        """Return `uuid`; for use in an event loop. Raises NotInitialised, CommandFailed."""
        await self.current_config()
        return self.uuid

    async def log_levels(self) -> int:
        """Return the directory depth of a key's logs in the git-annex branch, which never changes."""
        return 1 if (self._last_read or await self.current_config()).boolean("annex.tune.branchhash1") else 2

    async def run(
        self,
        *argv: str,
        input: bytes = b"",
        timeout: float = 60.0,
        accept: Collection[int] | None = (0,),
        env: Mapping[str, str] | None = None,
        take: Callable[[bytes], bool] | None = None,
    ) -> Completed:
        """Run a command in this repository, see `child.run`; `env` adds to its environment."""
        environment = {**self.environment(), **(env or {})}
        return await child.run(
            argv, cwd=self.cwd, env=environment, input=input, timeout=timeout, accept=accept, take=take
        )


def _line(raw: bytes) -> str:
    """Decode output without its final newline. A path may contain other newlines."""
    return decode(raw.removesuffix(b"\n"))
