"""An environment for child processes that shares nothing with the user who runs the tests.

Its directory is short (git-annex puts unix sockets deep into a repository, and their paths are limited to
107 bytes) and is removed with everything in it, read-only objects included.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from .processes import Process, assert_none_left, end_group, kill, with_variable

MARKER = "CLUSTER_REMOTE_TEST"
"""A variable that every process of an environment has; its value is the environment's directory."""

LOCALE = "C.UTF-8"

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

ANNEX_PROGRAM = Path(str(files("git_annex") / "git-annex"))
ANNEX_NAMES = ("git-annex", "git-annex-shell", "git-remote-annex", "git-remote-p2p-annex", "git-remote-tor-annex")

GIT_CONFIG = """\
[user]
\tname = Tess Tester
\temail = tess@example.com
[init]
\tdefaultBranch = main
[gc]
\tauto = 0
[maintenance]
\tauto = false
[annex]
\tsshcaching = false
[annex "security"]
\tallowed-ip-addresses = all
"""

GPG_CONFIG = "s2k-count 65536\n"
"""Without it gpg starts an agent, which spends a quarter of a second to find out how many rounds a password needs."""

MEMORY = Path("/dev/shm")
ENOUGH = 4 * 2**30
"""Bytes that must be free in memory for the tests to keep their repositories there."""


class Environment:
    """A home directory, a git configuration and a PATH of its own, below `directory`.

    Attributes:
        directory: holds everything; repositories of a test go here too.
        home: HOME.
        bin: the first directory on PATH, empty at first: put shims here with `program`.
        annex: the second one: git-annex, by each of its names. The scripts that its wheel installs do nothing but start
            the program, and take four times as long over it as the program itself.
        env: the variables that child processes get. May be changed by a test.
    """

    def __init__(self, directory: Path) -> None:
        """Lay out an environment in `directory`, which exists."""
        self.directory = directory
        self.home = directory / "home"
        self.bin = directory / "bin"
        self.annex = directory / "annex"
        temporary = directory / "tmp"
        for each in (self.home, self.bin, self.annex, temporary):
            each.mkdir()
        for name in ANNEX_NAMES:
            (self.annex / name).symlink_to(ANNEX_PROGRAM)
        (self.home / ".gitconfig").write_text(GIT_CONFIG)
        (self.home / ".gnupg").mkdir(mode=0o700)
        (self.home / ".gnupg" / "gpg.conf").write_text(GPG_CONFIG)
        self.env: dict[str, str] = {
            "HOME": str(self.home),
            "PATH": os.pathsep.join((str(self.bin), str(self.annex), str(Path(sys.executable).parent), SYSTEM_PATH)),
            "TMPDIR": str(temporary),
            "LC_ALL": LOCALE,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self.home / ".gitconfig"),
            "GIT_TERMINAL_PROMPT": "0",
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
            "XDG_DATA_HOME": str(self.home / ".local/share"),
            "XDG_STATE_HOME": str(self.home / ".local/state"),
            "XDG_RUNTIME_DIR": str(temporary),
            MARKER: str(directory),
        }

    def run(
        self,
        *argv: str | bytes | Path,
        cwd: Path | None = None,
        input: bytes | None = None,
        check: bool = True,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
        instead: Callable[[], None] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end and return what it wrote.

        Args:
            argv: program and arguments, no shell.
            cwd: where; the environment's directory by default.
            input: its standard input; empty by default.
            check: whether an exit status other than 0 is an AssertionError.
            timeout: seconds, after which its whole process group is killed.
            env: variables to have besides those of the environment.
            instead: what the child does instead of executing the program; it never returns.

        Raises:
            AssertionError: it failed or took too long; the message has the command and what it wrote.
        """
        where = self.directory if cwd is None else cwd
        process = self.popen(
            *argv,
            cwd=where,
            env=env,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stderr=subprocess.PIPE,
            instead=instead,
        )
        with process:
            try:
                out, err = process.communicate(input, timeout)
            except subprocess.TimeoutExpired:
                end_group(process.pid)
                out, err = process.communicate(timeout=timeout)
                raise AssertionError(_account(argv, where, f"was still running after {timeout} s", out, err)) from None
            except BaseException:
                end_group(process.pid)
                raise
        if check and process.returncode != 0:
            raise AssertionError(_account(argv, where, f"exited with {process.returncode}", out, err))
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def popen(
        self,
        *argv: str | bytes | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.PIPE,
        stdout: int = subprocess.PIPE,
        stderr: int | None = None,
        instead: Callable[[], None] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command that leads a process group of its own; the caller ends it."""
        return subprocess.Popen(
            [os.fsencode(argument) for argument in argv],
            cwd=self.directory if cwd is None else cwd,
            env={**self.env, **(env or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=instead,
        )

    def program(self, name: str, source: str) -> Path:
        """Put an executable script into `bin`, ahead of any other program of that name."""
        path = self.bin / name
        path.write_text(source)
        path.chmod(0o755)
        return path

    def which(self, name: str) -> Path:
        """The program that `name` means here, shims in `bin` left aside.

        Raises:
            AssertionError: there is none.
        """
        directories = [d for d in self.env["PATH"].split(os.pathsep) if d != str(self.bin)]
        found = shutil.which(name, path=os.pathsep.join(directories))
        if found is None:
            raise AssertionError(f"no program {name} on the PATH {directories}")
        return Path(found)

    @contextlib.contextmanager
    def applied(self, cwd: Path | None = None) -> Iterator[None]:
        """Make this the environment of the test process itself, for code that runs inside it.

        Args:
            cwd: also the working directory meanwhile.
        """
        before, where = dict(os.environ), Path.cwd()
        _replace_variables(self.env)
        try:
            if cwd is not None:
                os.chdir(cwd)
            yield
        finally:
            os.chdir(where)
            _replace_variables(before)

    def processes(self) -> list[Process]:
        """The running processes that inherited this environment."""
        return with_variable(MARKER, str(self.directory))

    def assert_no_process_left(self, within: float = 5.0) -> None:
        """Raise AssertionError if processes of this environment outlast so many seconds, and kill them."""
        if (self.home / ".gnupg" / "S.gpg-agent").exists():
            # gpg, which git-annex encrypts with, leaves its agent running for as long as its home is there.
            self.run("gpgconf", "--kill", "all", cwd=self.directory)
        assert_none_left(self.processes, within)


def _replace_variables(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _account(argv: Sequence[str | bytes | Path], cwd: Path, what: str, out: bytes, err: bytes) -> str:
    """Describe what a command did, for the message of a failed test."""
    command = " ".join(repr(os.fsdecode(argument)) for argument in argv)
    texts = (f"{name}:\n{text.decode(errors='backslashreplace')}" for name, text in (("stdout", out), ("stderr", err)))
    return f"{command} {what}, in {cwd}\n" + "\n".join(texts)


def remove_tree(directory: Path) -> None:
    """Remove a directory with everything in it, also what git-annex made read-only."""
    with contextlib.suppress(PermissionError):
        shutil.rmtree(directory)
        return
    for parent, below, _ in os.walk(directory):
        for name in below:
            path = Path(parent, name)
            if not path.is_symlink():
                path.chmod(stat.S_IRWXU)
    shutil.rmtree(directory)


@functools.cache
def _fast_place() -> Path | None:
    """Return the directory of shared memory if it has room and allows programs, else None.

    On a disk, git and git-annex spend as much time waiting for it and looking for free inodes as on their work.
    """
    try:
        found = os.statvfs(MEMORY)
    except OSError:
        return None
    usable = os.access(MEMORY, os.W_OK) and not found.f_flag & os.ST_NOEXEC
    return MEMORY if usable and found.f_bavail * found.f_frsize >= ENOUGH else None


@contextlib.contextmanager
def open_umask() -> Iterator[None]:
    """Let everybody read and change new files, unless the program that makes them says otherwise."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def temporary_environment(within: float = 5.0) -> Iterator[Environment]:
    """A new environment; at the end no process of it may be left, and its directory is removed.

    Args:
        within: seconds that processes are given to end by themselves.

    Raises:
        AssertionError: at the end, if processes were left; they are killed first.
    """
    # Resolved, since git-annex prints and compares real paths.
    directory = Path(tempfile.mkdtemp(prefix="cr-", dir=_fast_place())).resolve()
    try:
        environment = Environment(directory)
        yield environment
        environment.assert_no_process_left(within)
    finally:
        # After a failed test some may be left: a failure to end must not hide the failure of the test.
        kill(with_variable(MARKER, str(directory)))
        remove_tree(directory)
