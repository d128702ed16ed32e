"""Having git-annex merge what was fetched before its branch is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["refresh"]


async def refresh(repository: Repository, timeout: float = 120.0) -> None:
    """Makes git-annex merge every fetched git-annex branch into its own, and commit its journal.

    Any command of git-annex that reads the branch does so first; `numcopies` is the cheapest that touches nothing else
    (`git annex merge` would merge the checked out branch too). Raises CommandFailed.
    """
    # It ends with 1 where the number was never set.
    await repository.run("git", "annex", "numcopies", timeout=timeout, accept=(0, 1))
