"""What is refused before it is touched, for it may be a stranger's: repositories on this machine, sockets, hosts.

git-annex-shell works in any repository it is given, by the hooks and the configuration that are there (observed with
git-annex 10.20261026, also where they belong to others). So a repository that came with a clone, or that somebody
else owns, is not given to it. The rules are git's (safe.directory) and git-annex's
(annex.security.allowed-ip-addresses).
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cluster_remote.p2p.errors import Unreachable

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["Refusal", "check_directory", "check_socket_owner", "connectable"]

# Seconds for git to say whether it works in a directory.
_GIT = 10.0
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


class Refusal(Unreachable):
    """Nothing was contacted or started: the address is not one to be trusted; says what would make it one."""


def check_directory(path: str, here: Repository | None, environment: Mapping[str, str]) -> None:
    """Refuse a repository inside the work tree of `here`, or of another owner. Raises Refusal. May wait for a disk."""
    if here is not None and _came_with(here, path):
        raise Refusal(
            f"{path} is inside the work tree of this repository, so it may have come with a clone, and its hooks would "
            "be run: move it somewhere else"
        )
    if not _all_ours(path) and _dubious(path, environment):
        raise Refusal(
            f"{path} belongs to somebody else, whose hooks would be run: if you trust its owner, git config --global "
            f"--add safe.directory {shlex.quote(path)}"
        )


def _came_with(here: Repository, path: str) -> bool:
    """Whether a path leads into what a clone brings: the work tree, but not the git directory in it."""
    tree = here.work_tree or (here.git_dir.parent if here.git_dir.name == ".git" else None)
    if tree is None:
        return False
    top, git_dir = Path(os.path.realpath(tree)), Path(os.path.realpath(here.git_dir))
    # By the path as it is written, too: a link in the work tree is a stranger's as well.
    places = (Path(os.path.realpath(path)), Path(os.path.abspath(path)))  # noqa: PTH100 -- links are not followed
    return any(place != top and place.is_relative_to(top) and not place.is_relative_to(git_dir) for place in places)


def _all_ours(path: str) -> bool:
    """Whether a repository's directories belong to who runs this. False also where that cannot be seen."""
    owners = set()
    for place in (path, os.path.join(path, ".git")):  # noqa: PTH118 -- as it is
        try:
            owners.add(Path(place).stat().st_uid)
            owners.add(Path(place).lstat().st_uid)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return owners <= {os.geteuid()}


def _dubious(path: str, environment: Mapping[str, str]) -> bool:
    """Whether git refuses to work in a directory because of its owner, as safe.directory has it."""
    try:
        done = subprocess.run(
            ["git", "-C", path, "rev-parse", "--git-dir"],
            env={**environment, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    # Where there is no repository, git-annex-shell says so in its own words.
    return done.returncode != 0 and b"safe.directory" in done.stderr


def check_socket_owner(path: bytes, peer: int) -> None:
    """Refuse a unix socket whose other side runs as somebody unexpected. Raises Refusal.

    Expected are root, this user, and the owner of the directory that the socket is in: anybody can make one in /tmp.
    """
    expected = {0, os.geteuid()}
    try:
        expected.add(Path(os.fsdecode(path)).parent.stat().st_uid)
    except OSError:
        pass
    if peer not in expected:
        raise Refusal(
            f"the other side runs as user {peer}, neither you nor the owner of the directory, so it gets no token"
        )


def connectable(address: str, port: int, allowed: str | None) -> bool:
    """Whether an address of the network may be connected to, where `allowed` is annex.security.allowed-ip-addresses.

    As git-annex reads it: `all`, or addresses, each alone or with a port (`[127.0.0.1]:80`); without it only public
    addresses. None: the user has given the address, so it is not to be asked.
    """
    if allowed is None or allowed.split() == ["all"]:
        return True
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Another way to write an address of the older kind, which is what the kernel connects to.
        ip = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or _translated(ip) or ip
    if ip.is_global and not ip.is_multicast:
        return True
    return any(_names(word, ip, port) for word in allowed.split())


def _translated(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """What a translator of the network connects to in place of an address (RFC 6052)."""
    return ipaddress.IPv4Address(ip.packed[-4:]) if ip in _TRANSLATED else None


def _names(word: str, ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> bool:
    host, bracket, rest = word.removeprefix("[").partition("]")
    if bracket and rest not in {"", f":{port}"}:
        return False
    try:
        return ipaddress.ip_address(host) == ip
    except ValueError:
        return False
