"""Make git-annex merge fetched branches before its branch is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["refresh"]


async def refresh(repository: Repository, timeout: float = 120.0, *, remotes: bool = False) -> None:
    """Make git-annex merge every fetched git-annex branch into its own, and commit its journal.

    Every git-annex command that reads the branch merges first. `git annex groupwanted` only prints a group's expression
    and does not touch the remotes; most other commands wait for ever if a remote is on a disk that hangs. `git annex
    merge` would merge the checked out branch too. With `remotes`, git-annex also inspects new remotes and learns their
    UUIDs. Raises CommandFailed.
    """
    words = ("group", "here") if remotes else ("groupwanted", "--", "nobody")
    await repository.run("git", "annex", *words, timeout=timeout)
