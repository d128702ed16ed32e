"""Adding a line to a log of the git-annex branch for which git-annex has no command.

The line is committed on top of the branch under a ref of another name that ends in /git-annex, which git-annex merges
like a branch that was fetched, by joining lines. So its own index and journal stay its own, and nothing is lost when
another git-annex writes at the same moment. (Observed with git-annex 10.20261026.)
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
    """Records which repositories are the nodes of a cluster. Raises AnnexError where that has not come about.

    `git annex updatecluster` knows only of nodes that are remotes of the repository that it runs in, and takes out the
    others.
    """
    await refresh(repository)
    lines = (await read_files(repository, [_FILE]))[_FILE]
    newest = max((clock for clock, rest in dated(lines) if rest.startswith(cluster.text)), default=0)
    # A clock that is behind must not make the new line the older one.
    seconds = max(time.time(), newest / 10**12 + 1 if newest > 0 else 0)
    line = f"{seconds:.6f}s {cluster} {' '.join(sorted(node.text for node in nodes))}\n".encode()
    await _append(repository, lines + line)
    now = ClusterLog.parse((await read_files(repository, [_FILE]))[_FILE])
    if now.nodes(cluster) != frozenset(nodes):
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
    # Who commits to this branch is of no interest, and somebody who never commits need not be known to git.
    identity = ("-c", "user.name=git-annex", "-c", "user.email=git-annex@localhost")
    commit = await git(*identity, "commit-tree", "--no-gpg-sign", "-p", parent, "-m", "update", tree)
    ref = f"refs/cluster-remote/{os.getpid()}/git-annex"
    try:
        await git("update-ref", ref, commit)
        await refresh(repository)
    finally:
        await repository.run("git", "update-ref", "-d", ref, accept=range(256))
