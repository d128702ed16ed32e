"""Whether what a remote needs on this machine is there, so that `git annex sync` can skip an unplugged disk.

Only checks paths: starts nothing, and connects to nothing. A hung mount counts as there, since nobody can tell that it
is not.
"""

from __future__ import annotations

import os

from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.looking import look

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster_remote.p2p.key import UUID
    from cluster_remote.transport.address import Address

__all__ = ["is_away"]

# Seconds for the file system to answer.
_LOOK = 2.0


def is_away(address: Address | None, git_dir: str, cluster: UUID) -> bool:
    """Return whether the gateway at a local address is missing; without one, all nodes of this repository's cluster.

    Raises CommandFailed if git cannot be asked.
    """
    if address is not None:
        from cluster_remote.transport.address import Directory, Unix

        if isinstance(address, Unix):
            return _missing([address.path])
        return isinstance(address, Directory) and _missing(_repositories(address.path))
    config = GitConfig.read(env={**os.environ, "GIT_DIR": git_dir})
    clusters = config.clusters()
    # A remote with a UUID of its own does not say which cluster it is for; if there is only one, it is that.
    names = {name for name, uuid in clusters.items() if uuid == cluster or len(clusters) == 1}
    nodes = [
        remote
        for remote in config.remotes()
        if names.intersection(config.clusters_of(remote)) and not config.boolean(f"remote.{remote}.annex-ignore")
    ]
    places = [_directory(config, remote, git_dir) for remote in nodes]
    if not places or None in places:
        return False
    return _missing([path for place in places if place is not None for path in _repositories(place)])


def _directory(config: GitConfig, remote: str, git_dir: str) -> str | None:
    """Return a node's directory; None if it is elsewhere, or only git-annex can reach it."""
    directory = config.directory_of(remote)
    if directory is None:
        # A file:// url is handled like a path elsewhere; here it counts as there.
        return None
    top = os.path.dirname(os.path.abspath(git_dir)) if os.path.basename(git_dir) == ".git" else git_dir  # noqa: PTH100, PTH119, PTH120
    return os.path.join(top, directory)  # noqa: PTH118 -- nothing but what an idle remote has imported already


def _repositories(place: str) -> list[str]:
    """Return the paths that show a repository: the mount point of an unplugged disk may still exist, empty."""
    return [os.path.join(place, ".git"), os.path.join(place, "HEAD")]  # noqa: PTH118 -- as above


def _missing(paths: Sequence[str]) -> bool:
    """Return whether none of the paths exists."""
    return look(paths[0], lambda: any(map(os.path.lexists, paths)), _LOOK) is False
