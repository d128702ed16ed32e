"""Make git-annex merge fetched branches before its branch is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["refresh"]


async def refresh(repository: Repository, timeout: float = 120.0) -> None:
    """Make git-annex merge every fetched git-annex branch into its own, and commit its journal.

    Any command of git-annex that reads the branch does so first. `git annex group here` only prints the groups of this
    repository, and its exit code tells a failure from an empty answer, which `git annex numcopies` does not;
    `git annex merge` would merge the checked out branch too. Raises CommandFailed.
    """
    await repository.run("git", "annex", "group", "here", timeout=timeout)
