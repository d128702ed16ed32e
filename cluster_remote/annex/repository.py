"""Where git-annex's repository is, its configuration, and commands run in it.

git-annex starts a special remote with GIT_DIR and GIT_WORK_TREE set. A child that works in this repository needs
them (made absolute, since it may run in another directory); a child that works in another one must not see them, or it
would look at the wrong repository. So nothing here starts a child with the environment as it happens to be.
"""

from __future__ import annotations

import locale
import os
import time
from collections.abc import Collection, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import anyio

from cluster_remote.annex import TOKEN_VARIABLE, child
from cluster_remote.annex.errors import NotARepository, NotInitialised
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.waiting import Completed, run_and_wait
from cluster_remote.p2p.key import UUID, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from anyio import Lock

__all__ = ["LOCAL_VARIABLES", "Repository", "foreign_environment", "utf8_locale", "without_token"]

# Seconds after which the configuration is read again although no file has changed.
_CONFIG_AGE = 30.0
# Seconds for a git command that only reads files of the repository.
_QUICK = 30.0
# Where the git directory is, and the work tree.
_WHERE = ("git", "rev-parse", "--absolute-git-dir"), ("git", "rev-parse", "--show-toplevel")


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
"""The environment variables that tie git to one repository: `git rev-parse --local-env-vars`, of any version.

A test compares them with those of the git that is installed.
"""


@cache
def utf8_locale() -> dict[str, str]:
    """Return the variables that children need besides to have a locale of UTF-8.

    In any other one git-annex loses the bytes beyond ASCII of the directories and names that it passes to git (observed
    with git-annex 10.20261026).
    """
    # As it was set at the start: one that this machine does not have is not UTF-8 either.
    codeset = locale.nl_langinfo(locale.CODESET).upper().replace("-", "")
    return {} if codeset == "UTF8" else {"LC_ALL": "C.UTF-8"}


def without_token() -> dict[str, str]:
    """Return the environment for children, without our token."""
    return {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE} | utf8_locale()


def foreign_environment() -> dict[str, str]:
    """Return the environment for a child that works in ANOTHER repository, without references to this one."""
    # The numbered variables carry what GIT_CONFIG_COUNT announces, and git does not list them.
    return {
        name: value
        for name, value in without_token().items()
        if name not in LOCAL_VARIABLES and not name.startswith(("GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_"))
    }


class _State(NamedTuple):
    """What files looked like when the configuration was read from them. `read` is in seconds of the monotonic clock."""

    files: dict[Path, tuple[int, int, int] | None]
    read: float

    def still_holds(self) -> bool:
        # A file that is included but was not there yet is not known: hence the limit.
        young = time.monotonic() - self.read < _CONFIG_AGE
        return young and all(_looks(file) == before for file, before in self.files.items())


def _looks(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


class Repository:
    """One git repository on this machine. `git_dir` is absolute; `cwd` is where its children run (None: here).

    `work_tree` is None where there is none, or where git is to find out for itself.
    """

    def __init__(self, git_dir: Path, cwd: Path | None = None, work_tree: Path | None = None) -> None:
        self.git_dir = git_dir if git_dir.is_absolute() else ((cwd or Path.cwd()) / git_dir).resolve()
        self.cwd = cwd
        self.work_tree = work_tree
        self._last_read: GitConfig | None = None
        self._reading: Lock | None = None
        self._read_from: _State | None = None

    @classmethod
    def here(cls, cwd: Path | None = None) -> Repository:
        """Find the repository that git uses in `cwd` (None: the working directory), before an event loop runs.

        GIT_DIR counts. Raises NotARepository, CommandFailed.
        """
        base = (cwd or Path.cwd()).resolve()
        environment = dict(os.environ)
        return cls._found(base, *(run_and_wait(argv, cwd=base, env=environment, timeout=_QUICK) for argv in _WHERE))

    @classmethod
    async def find(cls, cwd: Path | None = None) -> Repository:
        """Do the same as `here` in an event loop. Raises NotARepository, CommandFailed."""
        base = (cwd or Path.cwd()).resolve()
        environment = dict(os.environ)
        return cls._found(
            base,
            *[await child.run(argv, cwd=base, env=environment, timeout=_QUICK, accept=None) for argv in _WHERE],
        )

    @classmethod
    def _found(cls, base: Path, git_dir: Completed, work_tree: Completed) -> Repository:
        if git_dir.returncode != 0:
            raise NotARepository(
                f"there is no usable git repository at {base}: run this inside one "
                f"(git init && git annex init makes one). git says: {git_dir.complaint}"
            )
        # There is no work tree in a bare repository, and in the git directory itself.
        tree = Path(_line(work_tree.stdout)) if work_tree.returncode == 0 else None
        return cls(Path(_line(git_dir.stdout)), base, tree)

    @classmethod
    def of_remote(cls, gitdir: str, cwd: Path | None = None) -> Repository:
        """The repository that git-annex means by its answer to GETGITDIR, which is relative to the working directory.

        Raises NotARepository if there is no such directory.
        """
        base = (cwd or Path.cwd()).resolve()
        git_dir = (base / gitdir).resolve()
        if not git_dir.exists():
            raise NotARepository(f"git-annex says that its repository is {git_dir}, but nothing is there")
        named = os.environ.get("GIT_WORK_TREE")
        return cls(git_dir, base, (base / named).resolve() if named else None)

    @property
    def place(self) -> Path:
        """Return the repository's location for display: the work tree, or the git directory if it is bare."""
        return self.work_tree or self.git_dir

    def environment(self) -> dict[str, str]:
        """Return the environment for children that work IN this repository."""
        environment = without_token()
        environment["GIT_DIR"] = str(self.git_dir)
        if self.work_tree is None:
            environment.pop("GIT_WORK_TREE", None)
        else:
            # With GIT_DIR alone, git takes the working directory for the top of the work tree.
            environment["GIT_WORK_TREE"] = str(self.work_tree)
        return environment

    @cached_property
    def common_dir(self) -> Path:
        """What all work trees of a repository share; the git directory itself where there is but one.

        As gitrepository-layout(5) has it, under `commondir`. Raises OSError where that cannot be read.
        """
        named = os.environ.get("GIT_COMMON_DIR")
        if named is not None:
            return ((self.cwd or Path.cwd()) / named).resolve()
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
        """Return the configuration as it is now; git is only asked if one of its files has changed.

        Other tasks go on meanwhile, and callers at the same time share one answer. Raises CommandFailed.
        """
        if self._reading is None:
            self._reading = anyio.Lock()
        async with self._reading:
            read = self._last_read
            if read is None or self._read_from is None or not self._read_from.still_holds():
                began = time.monotonic()
                # Checked before git reads them, so that a change in between is noticed the next time.
                known = self._usual_files() if self._read_from is None else self._read_from.files
                before = {file: _looks(file) for file in known}
                done = await self.run("git", "config", "--list", "--show-origin", "-z", timeout=_QUICK)
                read, files = GitConfig.parse_with_origins(done.stdout)
                self._last_read = read
                found = {file: _looks(file) for file in map(self._absolute, files)}
                self._read_from = _State({**found, **before}, began)
        return read

    def _absolute(self, name: str) -> Path:
        return (self.cwd or Path.cwd()) / name

    def _usual_files(self) -> list[Path]:
        """Where git looks, whether or not there is anything yet; HEAD too, for `includeIf "onbranch:"`."""
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
            return UUID.parse(text)
        except ValueError:
            what = f"annex.uuid is {text[:64]!r}" if text else "annex.uuid is not set"
            raise NotInitialised(
                f"{self.place} is not a repository of git-annex ({what}): run git annex init in it"
            ) from None

    async def find_uuid(self) -> UUID:
        """Return `uuid` in an event loop. Raises NotInitialised, CommandFailed."""
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
    ) -> Completed:
        """Run a command in this repository to its end, see `child.run`; `env` adds to its environment."""
        environment = {**self.environment(), **(env or {})}
        return await child.run(argv, cwd=self.cwd, env=environment, input=input, timeout=timeout, accept=accept)


def _line(raw: bytes) -> str:
    """One line of output that may itself hold newlines, as a path can."""
    return decode(raw.removesuffix(b"\n"))
