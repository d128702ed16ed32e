"""The required programs and libraries: which are installed, where, and in which version."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from cluster_remote import __version__
from cluster_remote.annex import child
from cluster_remote.annex.errors import CommandFailed
from cluster_remote.annex.repository import without_token
from cluster_remote.annex.version import NEEDED, OLDEST, version_number
from cluster_remote.diagnosis.checkup import Program
from cluster_remote.diagnosis.problem import Problem

__all__ = ["Programs", "find_programs", "problems_of_programs"]

# Seconds for a program to report its version.
_QUICK = 20.0
_VERSIONS: Mapping[str, tuple[str, ...]] = {
    "git": ("git", "--version"),
    "git-annex": ("git-annex", "version", "--raw"),
    "git-annex-remote-cluster": ("git-annex-remote-cluster", "--version"),
    "ssh": ("ssh", "-V"),
}
_NAMES = ("git", "git-annex", "git-annex-shell", "git-annex-remote-cluster", "ssh")
_LIBRARIES = ("annexremote", "anyio")
_VERSION = re.compile(r"[0-9]+(?:\.[0-9]+)+\S*")


@dataclass(frozen=True)
class Programs:
    """The programs found. `versions` lacks those that do not report one; `own` is this program's directory.

    `elsewhere` maps programs missing from PATH to directories outside PATH that contain them; `together` is a directory
    with both git-annex and git-annex-shell.
    """

    paths: Mapping[str, Path | None]
    versions: Mapping[str, str]
    own: Path
    elsewhere: Mapping[str, Path] = field(default_factory=dict)
    together: Path | None = None

    def listed(self) -> tuple[Program, ...]:
        """Return all programs and libraries."""
        found = [Program(name, _text(self.paths.get(name)), self.versions.get(name)) for name in _NAMES]
        found.append(Program("Python", sys.executable, self.versions.get("Python")))
        found += [Program(name, None, self.versions.get(name)) for name in _LIBRARIES]
        return tuple(found)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


async def find_programs() -> Programs:
    """Look for the programs on PATH, and ask each for its version."""
    own = Path(sys.executable).parent
    paths = {name: Path(found) if (found := shutil.which(name)) else None for name in _NAMES}
    versions = {"Python": ".".join(map(str, sys.version_info[:3]))}
    for name, argv in _VERSIONS.items():
        if paths[name] is not None and (version := await _version(argv)):
            versions[name] = version
    for library in _LIBRARIES:
        versions[library] = metadata.version(library)
    annex, shell = (_directories(paths[name]) for name in ("git-annex", "git-annex-shell"))
    missing = (name for name in _NAMES if paths[name] is None)
    elsewhere = {name: directory for name in missing for directory in (*annex, own) if _has(directory, name)}
    both = ("git-annex", "git-annex-shell")
    together = next((directory for directory in (*annex, *shell) if _has(directory, *both)), None)
    return Programs(paths, versions, own, elsewhere, together)


def _directories(path: Path | None) -> tuple[Path, ...]:
    return () if path is None else (path.parent, path.resolve().parent)


def _has(directory: Path, *names: str) -> bool:
    return all(os.access(directory / name, os.X_OK) for name in names)


async def _version(argv: tuple[str, ...]) -> str | None:
    try:
        done = await child.run(argv, env=without_token(), timeout=_QUICK)
    except CommandFailed:
        return None
    found = _VERSION.search(done.stdout.decode("utf-8", "replace") + done.complaint)
    return found[0].rstrip(",;") if found else None


def problems_of_programs(programs: Programs, *, needs_ssh: bool) -> Iterator[Problem]:
    """Yield what is wrong with the installation. Pure."""
    for name in _NAMES:
        if programs.paths.get(name) is None and (name != "ssh" or needs_ssh):
            yield _missing(name, programs)
    annex, shell = programs.paths.get("git-annex"), programs.paths.get("git-annex-shell")
    if annex is not None and shell is not None and not set(_directories(annex)) & set(_directories(shell)):
        yield Problem(
            "program-elsewhere",
            f"git-annex is {annex}, but git-annex-shell is {shell}: two installations, possibly of different versions",
            "Put the directory of one installation first on PATH (also in your shell's startup file):",
            (_path_command(programs.together or annex.parent),),
            about="git-annex-shell",
        )
    ours = programs.paths.get("git-annex-remote-cluster")
    version = programs.versions.get("git-annex-remote-cluster")
    if ours is not None and version != __version__:
        yield Problem(
            "program-elsewhere",
            f"git-annex runs {ours}, which is version {version or 'unknown'}; this program is version {__version__}",
            "Put this program's directory first on PATH (also in your shell's startup file):",
            (_path_command(programs.own),),
            about="git-annex-remote-cluster",
        )
    version = programs.versions.get("git-annex")
    if version is not None and version_number(version) < OLDEST:
        yield Problem(
            "program-old",
            f"git-annex is version {version}, but this program needs {NEEDED} or newer",
            "Upgrade it:",
            _install("git-annex", upgrade=True),
            about="git-annex",
        )


def _missing(name: str, programs: Programs) -> Problem:
    directory = programs.elsewhere.get(name)
    if directory is not None:
        return Problem(
            "program-missing",
            f"{name} is not on PATH, so git-annex cannot run it; there is one in {directory}",
            "Add that directory to PATH (also in your shell's startup file):",
            (_path_command(directory),),
            about=name,
        )
    if name.startswith("git-annex"):
        commands = _install("git-annex" if name == "git-annex-shell" else name)
        remedy = "Install it:" if commands else "Install it from your system's packages or as its home page says."
        return Problem("program-missing", f"{name} is not on PATH", remedy, commands, about=name)
    return Problem(
        "program-missing",
        f"{name} is not on PATH",
        "Install it; on Debian and Ubuntu:",
        (f"sudo apt-get install {'openssh-client' if name == 'ssh' else name}",),
        about=name,
    )


def _install(package: str, *, upgrade: bool = False) -> tuple[str, ...]:
    """Return the command that installs a package next to this program; empty if there is none."""
    prefix = Path(sys.prefix)
    if prefix.parent.name == "venvs" and shutil.which("pipx"):
        return (f"pipx inject --include-apps {'--force ' if upgrade else ''}{shlex.quote(prefix.name)} {package}",)
    if prefix.parent.name == "tools" and prefix.parent.parent.name == "uv" and shutil.which("uv"):
        with_package = f"--with-executables-from {package}"
        return (f"uv tool install {'--upgrade ' if upgrade else ''}{with_package} {shlex.quote(prefix.name)}",)
    python, option = shlex.quote(sys.executable), " --upgrade" if upgrade else ""
    if importlib.util.find_spec("pip") is not None and not _managed_by_the_system():
        return (f"{python} -m pip install{option} {package}",)
    if shutil.which("uv") and sys.prefix != sys.base_prefix:
        return (f"uv pip install --python {python}{option} {package}",)
    return ()


def _managed_by_the_system() -> bool:
    """Return whether pip would refuse, because the system manages this Python's packages."""
    return sys.prefix == sys.base_prefix and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()


def _path_command(directory: Path) -> str:
    return f'export PATH={shlex.quote(str(directory))}:"$PATH"'
