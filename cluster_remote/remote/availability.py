"""Whether what a remote needs on this machine is there, so that `git annex sync` can pass over an unplugged disk.

Only places are looked at: nothing is started, and nothing is connected to. A mount that hangs counts as there, since
nobody can say that it is not.
"""

from __future__ import annotations

import os
import threading

from cluster_remote.annex.gitconfig import GitConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster_remote.p2p.key import UUID
    from cluster_remote.transport.address import Address

__all__ = ["is_away"]

# Seconds for the file system to answer.
_LOOK = 2.0


def is_away(address: Address | None, git_dir: str, cluster: UUID) -> bool:
    """Return whether the gateway at a local address is away; without one, all nodes of this repository's cluster.

    Raises CommandFailed where git cannot be asked.
    """
    if address is not None:
        from cluster_remote.transport.address import Directory, Unix

        return isinstance(address, Directory | Unix) and _missing([address.path])
    config = GitConfig.read(env={**os.environ, "GIT_DIR": git_dir})
    names = {name for name, uuid in config.clusters().items() if uuid == cluster} or set(config.clusters())
    nodes = [
        remote
        for remote in config.remotes()
        if names & set((config.remote(remote, "annex-cluster-node") or "").lower().split())
        and not config.boolean(f"remote.{remote}.annex-ignore")
    ]
    places = [_directory(config, remote, git_dir) for remote in nodes]
    return bool(places) and all(place is not None for place in places) and _missing([p for p in places if p])


def _directory(config: GitConfig, remote: str, git_dir: str) -> str | None:
    """The directory that a node is in; None for what is anywhere else, or only git-annex can reach."""
    url = config.remote(remote, "annexUrl") or config.remote(remote, "url")
    if not url or (":" in url.partition("/")[0] and not url.startswith("file://")):
        return None
    path = url.removeprefix("file://")
    top = os.path.dirname(os.path.abspath(git_dir)) if os.path.basename(git_dir) == ".git" else git_dir  # noqa: PTH100, PTH119, PTH120
    return os.path.join(top, path)  # noqa: PTH118 -- nothing but what an idle remote has imported already


def _missing(paths: Sequence[str]) -> bool:
    """Return whether none of the paths exists."""
    found: list[bool] = []
    look = threading.Thread(target=lambda: found.append(any(map(os.path.lexists, paths))), daemon=True)
    look.start()
    look.join(_LOOK)
    return found == [False]
