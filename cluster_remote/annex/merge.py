"""Make git-annex merge fetched branches before its branch is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["refresh"]


async def refresh(repository: Repository, timeout: float = 120.0, *, remotes: bool = False) -> None:
    """Make git-annex merge every fetched git-annex branch into its own, and commit its journal.

    Any command of git-annex that reads the branch does so first. `git annex groupwanted` only prints a group's
    expression, and does not look at the remotes: most others wait for ever if one of these is on a disk that hangs.
    `git annex merge` would merge the checked out branch too. With `remotes`, git-annex also looks at new ones, and
    learns their UUIDs. Raises CommandFailed.
    """
    words = ("group", "here") if remotes else ("groupwanted", "--", "nobody")
    await repository.run("git", "annex", *words, timeout=timeout)
