"""Run our programs in a fork of the test process, which has imported them already.

Importing takes many times as long as most commands do. A fork is a process like any other, with its own working
directory, variables, descriptors, signals and process group; only its start differs from that of the installed program.
Tests of the start itself use `Environment.run` and `Environment.popen`, as do these functions where a shim or a
variable decides which program is started and how.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib
import io
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cluster_remote
from cluster_remote.__main__ import command_line, main
from cluster_remote.gateway import pipe

from .environment import LOCALE, Environment

__all__ = ["popen_forked", "run_forked"]

PROGRAMS: Mapping[str, Callable[[], int]] = {
    "cluster-remote": command_line,
    "git-annex-remote-cluster": main,
    "git-annex-p2p-cluster": pipe.main,
}

AT_START = ("LC_", "LANG", "PYTHON", "PATH")
"""Prefixes of the variables that decide which program is started, or that Python reads only at its start."""

for _module in pkgutil.walk_packages(cluster_remote.__path__, "cluster_remote."):
    # Read once, and not in every fork.
    importlib.import_module(_module.name)
gc.freeze()  # Neither the tests nor the forks need to look through all this for garbage.


def run_forked(
    environment: Environment,
    *arguments: str | bytes | Path,
    cwd: Path | None = None,
    input: bytes | None = None,
    check: bool = True,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run `cluster-remote` with these arguments to its end, as `Environment.run` would."""
    argv, instead = _start(environment, "cluster-remote", arguments, env)
    return environment.run(*argv, cwd=cwd, input=input, check=check, timeout=timeout, env=env, instead=instead)


def popen_forked(
    environment: Environment,
    program: str,
    *arguments: str | bytes | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.PIPE,
    stdout: int = subprocess.PIPE,
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start one of our programs, as `Environment.popen` would. Any other program is started as it is."""
    argv, instead = _start(environment, program, arguments, env)
    return environment.popen(*argv, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr, instead=instead)


def _start(
    environment: Environment, program: str, arguments: Sequence[str | bytes | Path], env: Mapping[str, str] | None
) -> tuple[list[str], Callable[[], None] | None]:
    """Return what to execute, and what a fork does instead if it can."""
    argv = [program, *map(os.fsdecode, arguments)]
    entry = PROGRAMS.get(program)
    special = any(name.startswith(AT_START) for name in env or ()) or environment.env.get("LC_ALL") != LOCALE
    if entry is None or special or (environment.bin / program).exists():
        return argv, None
    argv[0] = str(environment.which(program))
    variables = {**environment.env, **(env or {})}
    return argv, lambda: _be(entry, argv, variables)


def _be(entry: Callable[[], int], argv: list[str], variables: Mapping[str, str]) -> None:
    """Be one of our programs: called in the child, whose standard streams and working directory are in place."""
    code = 70
    try:
        # Also the one by which subprocess learns that a program was executed.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        gc.freeze()  # Nothing of the parent's is to be finalised here.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_IGN)
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        os.environ.clear()
        os.environ.update(variables)
        sys.argv = argv
        tempfile.tempdir = None  # To be found by the new variables.
        sys.modules["__main__"] = types.ModuleType("__main__")
        # Kept to the end, also where the program puts another stream in the place of one.
        streams = [_stream(number) for number in range(3)]
        sys.stdin, sys.stdout, sys.stderr = streams
        asyncio._set_running_loop(None)
        subprocess.run = _outside_event_loops(subprocess.run)
        code = contextvars.Context().run(entry)
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 -- as the interpreter ends
        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)


def _outside_event_loops(run: Callable[..., Any]) -> Callable[..., Any]:
    """Waiting for a child as before, but the end of the program where an event loop would stand still meanwhile."""

    def checked(*args: Any, **keywords: Any) -> Any:
        if asyncio._get_running_loop() is not None:
            os.write(2, b"Traceback: an event loop was blocked by a child\n")
            traceback.print_stack()
            os._exit(70)
        return run(*args, **keywords)

    return checked


def _stream(descriptor: int) -> io.TextIOWrapper:
    """A standard stream as Python opens it in the locale C.UTF-8."""
    raw = io.FileIO(descriptor, "r" if descriptor == 0 else "w", closefd=False)
    binary = io.BufferedReader(raw) if descriptor == 0 else io.BufferedWriter(raw)
    errors = "backslashreplace" if descriptor == 2 else "surrogateescape"
    return io.TextIOWrapper(binary, "utf-8", errors, line_buffering=descriptor == 2 or raw.isatty())
