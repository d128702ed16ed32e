"""Refuse untrusted repositories on this machine, sockets and hosts before using them.

git-annex-shell works in any repository it is given and obeys its hooks and configuration, even if another user owns
them (observed with git-annex 10.20261026). So it is never given a repository that came with a clone or that another
user owns. The rules are git's (safe.directory) and git-annex's (annex.security.allowed-ip-addresses).
"""

from __future__ import annotations

import ipaddress
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cluster_remote.annex.errors import CommandFailed
from cluster_remote.annex.waiting import run_and_wait
from cluster_remote.p2p.errors import Unreachable

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["Refusal", "check_directory", "check_socket_owner", "connectable"]

# Seconds for git to say whether it accepts a directory.
_GIT = 10.0
_LONGEST_PATH = 4096
# IPv6 addresses that end in the IPv4 address which is connected to: NAT64 (RFC 6052), SIIT (RFC 2765), and the
# "compatible" ones (RFC 4291).
_TRANSLATED = [ipaddress.IPv6Network(network) for network in ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96")]
# NAT64 within one network (RFC 8215), which Python does not know as private.
_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")


class Refusal(Unreachable):
    """The address is not trusted, so nothing was contacted or started; the message says how to trust it."""


def check_directory(path: str, here: Repository | None, environment: Mapping[str, str]) -> None:
    """Raise Refusal for a repository inside the work tree of `here` or with another owner. May wait for a disk."""
    if not os.path.lexists(path) and not path.endswith("/"):
        # git-annex-shell, like git, then uses this one.
        path += ".git"
    if here is not None and _is_in_work_tree(here, path):
        raise Refusal(
            f"{path} is inside the work tree of this repository, so it may have come with a clone, and its hooks would "
            "run: move it somewhere else"
        )
    top = _top_of(path)
    # Git never commits a .git, so a repository with one did not come with a clone.
    if not os.path.lexists(Path(top) / ".git") and (clone := _clone_with(top, environment)) is not None:
        raise Refusal(
            f"{path} came with the clone in {clone}, where it is committed, and its hooks would run: move it somewhere "
            "else"
        )
    if not _is_ours(top) and _is_refused_by_git(top, environment):
        raise Refusal(
            f"{top} belongs to another user, whose hooks would run: if you trust its owner, run git config --global "
            f"--add safe.directory {shlex.quote(top)}"
        )


def _is_in_work_tree(here: Repository, path: str) -> bool:
    """Return whether a path is inside the work tree, which a clone brings along, but not in its git directory."""
    tree = here.work_tree or (here.git_dir.parent if here.git_dir.name == ".git" else None)
    if tree is None:
        return False
    top, git_dir = Path(os.path.realpath(tree)), Path(os.path.realpath(here.git_dir))
    # Check the unresolved path too: a symlink in the work tree may have come with the clone as well.
    paths = (Path(os.path.realpath(path)), Path(os.path.abspath(path)))  # noqa: PTH100 -- links are not followed
    return any(each != top and each.is_relative_to(top) and not each.is_relative_to(git_dir) for each in paths)


def _clone_with(path: str, environment: Mapping[str, str]) -> Path | None:
    """Return the work tree of any clone that has committed files of the repository at a path; None if there is none.

    That may be another work tree of this repository, or one that this repository is a submodule of. Raises Refusal if
    git cannot say what a clone has committed.
    """
    real = Path(os.path.realpath(path))
    for top in real.parents:
        git_dir = top / ".git"
        if not os.path.lexists(git_dir) or real.is_relative_to(git_dir):
            continue
        if git_dir.is_dir() and not os.path.lexists(git_dir / "HEAD"):
            # To git, this is no repository.
            continue
        inside = f":(literal){real.relative_to(top)}"
        # Whoever owns the clone: only its index is read.
        settings = ("-c", "safe.directory=*", "-c", "core.fsmonitor=")
        argv = ("git", *settings, "-C", str(top), "ls-files", "--stage", "-z", "--", inside)
        try:
            listed = run_and_wait(argv, env=environment, timeout=_GIT)
            failure = listed.complaint if listed.returncode else None
        except CommandFailed as error:
            failure = str(error)
        if failure is not None:
            raise Refusal(
                f"{path} may have come with the clone in {top}, and its hooks would run: git cannot list what is "
                f"committed there ({failure}); repair that clone, or move {path} somewhere else"
            )
        # The repository itself may be a submodule, of which only the commit is listed.
        if any(entry and not entry.startswith(b"160000 ") for entry in listed.stdout.split(b"\0")):
            return top
    return None


def _top_of(path: str) -> str:
    """Return the repository that git-annex-shell uses in a directory: this one, or like git the first one around it."""
    real = Path(os.path.realpath(path))
    for top in (Path(path), *real.parents):
        if _is_repository(top):
            return path if top == Path(path) else str(top)
    return path


def _is_repository(directory: Path) -> bool:
    """Return whether a directory looks like a repository to git. False if that cannot be determined."""
    try:
        return os.path.lexists(directory / ".git") or (
            (directory / "HEAD").is_file() and (directory / "objects").is_dir()
        )
    except OSError:
        return False


def _is_ours(path: str) -> bool:
    """Return whether the current user owns a repository's directories. False if that cannot be determined."""
    owners = set()
    git_dir = os.path.join(path, ".git")  # noqa: PTH118 -- without normalising it
    for directory in (path, git_dir, *_named_in(git_dir)):
        try:
            owners.add(Path(directory).stat().st_uid)
            owners.add(Path(directory).lstat().st_uid)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return owners <= {os.geteuid()}


def _named_in(file: str) -> list[str]:
    """Return the directory that a `.git` file leads to, if that is one (gitrepository-layout(5))."""
    try:
        # Opening a named pipe would wait for a writer.
        if not Path(file).is_file():
            return []
        with open(file, "rb") as gitfile:
            content = os.fsdecode(gitfile.read(_LONGEST_PATH))
    except OSError:
        return []
    label, _, directory = content.rstrip("\r\n").partition("gitdir: ")
    if label or "\0" in directory:
        # To git, this is no repository.
        return []
    return [os.path.join(os.path.dirname(file), directory)]  # noqa: PTH118, PTH120


def _is_refused_by_git(path: str, environment: Mapping[str, str]) -> bool:
    """Return whether git refuses a directory because of its owner (see safe.directory)."""
    command = ("git", "-C", path, "rev-parse", "--git-dir")
    try:
        done = run_and_wait(command, env={**environment, "LC_ALL": "C"}, timeout=_GIT)
    except CommandFailed:
        return True
    # If there is no repository, let git-annex-shell report that.
    return done.returncode != 0 and "safe.directory" in done.complaint


def check_socket_owner(path: bytes, peer: int) -> None:
    """Raise Refusal for a unix socket whose server runs as an unexpected user.

    Only root, the current user and the owner of the socket's directory are expected: any user can create a socket in
    /tmp.
    """
    expected = {0, os.geteuid()}
    try:
        expected.add(Path(os.fsdecode(path)).parent.stat().st_uid)
    except OSError:
        pass
    if peer not in expected:
        raise Refusal(
            f"the server runs as user {peer}, neither you nor the owner of the directory, so it gets no token"
        )


def connectable(address: str, port: int, allowed: str | None) -> bool:
    """Return whether an IP address may be connected to; `allowed` is annex.security.allowed-ip-addresses.

    Like in git-annex: `all`, or addresses with or without a port (`[127.0.0.1]:80`); if empty, only public addresses.
    None allows everything, because the user gave the address.
    """
    if allowed is None or allowed.split() == ["all"]:
        return True
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # These IPv6 forms embed an IPv4 address, which is what gets connected to.
        ip = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or _translated(ip) or ip
    if ip.is_global and not ip.is_multicast and not getattr(ip, "is_site_local", False) and ip not in _LOCAL:
        return True
    return any(_allows(word, ip, port) for word in allowed.split())


def _translated(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address stands for where it is translated."""
    if ip.is_loopback or ip.is_unspecified or not any(ip in network for network in _TRANSLATED):
        return None
    return ipaddress.IPv4Address(ip.packed[-4:])


def _allows(word: str, ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> bool:
    host, bracket, rest = word.removeprefix("[").partition("]")
    if bracket and rest not in {"", f":{port}"}:
        return False
    try:
        return ipaddress.ip_address(host) == ip
    except ValueError:
        return False
