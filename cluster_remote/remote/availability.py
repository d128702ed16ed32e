"""Check whether a remote's local paths exist, so that `git annex sync` can skip an unplugged disk.

Only checks paths: starts nothing, and connects to nothing. A hung mount counts as available, because its state cannot
be determined.
"""

from __future__ import annotations

import os

from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.waiting import ask_disk_and_wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster_remote.p2p.key import UUID
    from cluster_remote.transport.address import Address

__all__ = ["is_away"]

# Seconds for the file system to answer.
_TIMEOUT = 2.0


def is_away(address: Address | None, git_dir: str, cluster: UUID, name: str) -> bool:
    """Return whether the gateway at a local address is missing; without one, all nodes of this repository's cluster.

    Does not look where an unverified configuration of the remote `name` leads: that may mount what is there. Raises
    CommandFailed if git cannot be asked.
    """
    config = GitConfig.of_git_dir(git_dir)
    if config.is_unverified(name):
        return False
    if address is not None:
        from cluster_remote.transport.address import Directory, Unix

        if isinstance(address, Unix):
            return _missing([address.path])
        return isinstance(address, Directory) and _missing(_markers(address.path))
    clusters = config.clusters()
    # A remote with its own UUID does not name its cluster; if there is only one cluster, it is that.
    names = {name for name, uuid in clusters.items() if uuid == cluster or len(clusters) == 1}
    nodes = [node for node in config.nodes_of_any(names) if not config.boolean(f"remote.{node}.annex-ignore")]
    directories = [_directory(config, node, git_dir) for node in nodes]
    if not directories or None in directories:
        return False
    return _missing([path for each in directories if each is not None for path in _markers(each)])


def _directory(config: GitConfig, remote: str, git_dir: str) -> str | None:
    """Return a node's directory; None if it is not local, or only git-annex can reach it."""
    directory = config.directory_of(remote)
    if directory is None:
        # A file:// url, which other code treats like a path, counts as available here.
        return None
    top = os.path.dirname(os.path.abspath(git_dir)) if os.path.basename(git_dir) == ".git" else git_dir  # noqa: PTH100, PTH119, PTH120
    return os.path.join(top, directory)  # noqa: PTH118 -- an idle remote does not import pathlib


def _markers(directory: str) -> list[str]:
    """Return the paths that show a repository: the mount point of an unplugged disk may still exist, empty."""
    return [os.path.join(directory, ".git"), os.path.join(directory, "HEAD")]  # noqa: PTH118 -- as above


def _missing(paths: Sequence[str]) -> bool:
    """Return whether none of the paths exists."""
    return ask_disk_and_wait(paths[0], lambda: any(map(os.path.lexists, paths)), _TIMEOUT) is False
