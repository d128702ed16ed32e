"""What `check` and `repair` share: the keys to look at, the nodes to ask about them, and the location log."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.locations import Batches, LocationReader, Selection, located
from cluster_remote.diagnosis.asking import Advance, Nodes, open_nodes
from cluster_remote.limits import sessions_that_fit, too_many_nodes

if TYPE_CHECKING:
    from cluster_remote.access.view import View
    from cluster_remote.annex.repository import Repository
    from cluster_remote.diagnosis.encrypted import Cipher

__all__ = ["Inquiry", "comparable_repository", "inquiry", "jobs_that_fit"]


def comparable_repository(view: View) -> Repository:
    """Return the repository whose location log to compare. Raises BadSettings if there is nothing to compare."""
    if not view.legible:
        raise BadSettings(
            f"{view.label}: its nodes hold encrypted or chunked content, whose keys only git-annex knows; "
            f"git annex fsck --fast --from {shlex.quote(view.label)} checks it"
        )
    if not view.nodes:
        raise BadSettings(
            f"{view.label}: this repository knows no node of the cluster; fetch the git-annex branch of its gateway: "
            "git fetch --all && git annex merge"
        )
    assert view.repository is not None
    return view.repository


def jobs_that_fit(view: View, jobs: int) -> int:
    """Return how many of the `jobs` wanted can use all nodes at once, within the limit of file descriptors.

    Each has a session with every node to ask about keys, and another to read or copy content. Raises BadSettings if
    there is no room for one session with every node.
    """
    nodes = len(view.living)
    # Connections to a gateway need fewer.
    if view.gateway is None and (reason := too_many_nodes(nodes)):
        raise BadSettings(reason)
    return max(min(jobs, sessions_that_fit(nodes) // 2), 1)


@dataclass(frozen=True)
class Inquiry:
    """Keys in batches, nodes to ask about them, and a reader of the location log."""

    batches: Batches
    nodes: Nodes
    reader: LocationReader


@asynccontextmanager
async def inquiry(
    repository: Repository, view: View, selection: Selection, cipher: Cipher | None, jobs: int, advance: Advance
) -> AsyncIterator[Inquiry]:
    """Open everything that is needed to compare the log with the nodes, with `jobs` sessions per node.

    `repository` is the view's `comparable_repository`. With `cipher`, the batches have the encrypted keys. Raises
    AnnexError.
    """
    async with AsyncExitStack() as stack:
        batches = await stack.enter_async_context(located(repository, selection))
        if cipher is not None:
            batches = await stack.enter_async_context(cipher.named(repository, batches))
        nodes = await stack.enter_async_context(open_nodes(view.living, jobs, advance))
        reader = await stack.enter_async_context(LocationReader(repository))
        yield Inquiry(batches, nodes, reader)
