"""Add a line to a log of the git-annex branch that git-annex has no command for.

The line is committed on top of the branch to another ref ending in /git-annex, which git-annex union-merges like a
fetched branch. So its index and journal are left alone, and nothing is lost if another git-annex writes at the same
time. (Observed with git-annex 10.20261026.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection

from cluster_remote.annex.branchlog import BRANCH, read_files
from cluster_remote.annex.clusterlog import ClusterLog
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.logformat import dated
from cluster_remote.annex.merge import refresh
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.key import UUID, decode

__all__ = ["record_nodes"]

_FILE = "cluster.log"


async def record_nodes(repository: Repository, cluster: UUID, nodes: Collection[UUID]) -> None:
    """Record the nodes of a cluster. Raises AnnexError if that did not succeed.

    `git annex updatecluster` only knows nodes that are remotes of the repository it runs in, and removes the others.
    """
    await refresh(repository)
    lines = (await read_files(repository, [_FILE]))[_FILE]
    newest = max((clock for clock, rest in dated(lines) if rest.startswith(cluster.text)), default=0)
    # The new line must be the newest even if this clock is slow, or another one far ahead.
    now = f"{time.time():.6f}"
    if isinstance(newest, int) and newest >= int(time.time()) * 10**12:
        now = str(newest // 10**12 + 1)
    line = f"{now}s {cluster} {' '.join(sorted(node.text for node in nodes))}\n".encode()
    await _append(repository, lines + line)
    recorded = ClusterLog.parse((await read_files(repository, [_FILE]))[_FILE])
    if recorded.nodes(cluster) != frozenset(nodes):
        raise AnnexError(f"the nodes of {cluster} could not be recorded in cluster.log of the git-annex branch")


async def _append(repository: Repository, content: bytes) -> None:
    async def git(*argv: str, input: bytes = b"") -> str:
        return decode((await repository.run("git", *argv, input=input)).stdout).strip()

    branch = decode(BRANCH)
    blob = await git("hash-object", "-w", "--stdin", input=content)
    listing = (await repository.run("git", "ls-tree", "-z", branch)).stdout
    entries = [entry for entry in listing.split(b"\0") if entry and not entry.endswith(f"\t{_FILE}".encode())]
    entries.append(f"100644 blob {blob}\t{_FILE}".encode())
    tree = await git("mktree", "-z", input=b"".join(entry + b"\0" for entry in entries))
    parent = await git("rev-parse", "--verify", branch)
    # The author of this commit does not matter, and the user may have no identity configured in git.
    identity = ("-c", "user.name=git-annex", "-c", "user.email=git-annex@localhost")
    commit = await git(*identity, "commit-tree", "--no-gpg-sign", "-p", parent, "-m", "update", tree)
    ref = f"refs/cluster-remote/{os.getpid()}/git-annex"
    try:
        await git("update-ref", ref, commit)
        await refresh(repository)
    finally:
        await repository.run("git", "update-ref", "-d", ref, accept=range(256))
