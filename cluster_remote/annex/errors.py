"""What can go wrong when git or git-annex is asked. Each message says what was tried and what to do."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AnnexError",
    "BadAnswer",
    "BatchFailed",
    "BranchUnreadable",
    "CommandFailed",
    "CredentialsUnreadable",
    "LocationLogError",
    "NoContent",
    "NotAKey",
    "NotARepository",
    "NotInitialised",
]


class AnnexError(Exception):
    """git or git-annex could not be asked, or did not do what it was asked."""


class NotARepository(AnnexError):
    """There is no git repository here, or git refuses to use it."""


class NotInitialised(AnnexError):
    """The git repository is not one of git-annex."""


class CommandFailed(AnnexError):
    """A command ended with an error, or did not end within its deadline.

    `returncode` is None where the command could not be started or did not end in time; `complaint` is the end
    of what it wrote to standard error.
    """

    def __init__(self, argv: Sequence[str], returncode: int | None, reason: str, complaint: str = "") -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.complaint = complaint
        super().__init__(with_complaint(f"{' '.join(argv)}: {reason}", complaint))


class BatchFailed(CommandFailed):
    """A long-lived child ended, or stayed silent, instead of answering."""


class BadAnswer(AnnexError):
    """What a long-lived child answered is not what it was asked for, so the rest of its output cannot be understood."""


class LocationLogError(AnnexError):
    """The location log could not be read, or did not take what was to be recorded."""


class NotAKey(AnnexError):
    """What was given is neither a key nor an annexed file."""


class NoContent(AnnexError):
    """The content of a key is not in this repository."""


class BranchUnreadable(AnnexError):
    """A file of the git-annex branch could not be read."""


class CredentialsUnreadable(AnnexError):
    """git-annex's file with credentials is there, but it cannot be read or is not one."""


def with_complaint(message: str, complaint: str) -> str:
    """`message`, with what the child wrote to standard error below it, if it wrote anything."""
    return f"{message}\n{complaint}" if complaint else message
