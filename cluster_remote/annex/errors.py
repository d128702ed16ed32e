"""Errors of git and git-annex. Each message says what was tried, and what to do."""

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
    """git or git-annex could not be run, or failed."""


class NotARepository(AnnexError):
    """There is no git repository here, or git refuses to use it."""


class NotInitialised(AnnexError):
    """The git repository is not initialised for git-annex."""


class CommandFailed(AnnexError):
    """A command failed or timed out.

    `returncode` is None if the command could not be started or timed out; `complaint` is the tail of its standard
    error.
    """

    def __init__(self, argv: Sequence[str], returncode: int | None, reason: str, complaint: str = "") -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.complaint = complaint
        super().__init__(with_complaint(f"{' '.join(argv)}: {reason}", complaint))


class BatchFailed(CommandFailed):
    """A long-lived child ended or timed out instead of answering."""


class BadAnswer(AnnexError):
    """A long-lived child gave an unexpected answer, so the rest of its output cannot be parsed."""


class LocationLogError(AnnexError):
    """The location log could not be read or updated."""


class NotAKey(AnnexError):
    """The argument is neither a key nor an annexed file."""


class NoContent(AnnexError):
    """The content of a key is not in this repository."""


class BranchUnreadable(AnnexError):
    """A file of the git-annex branch could not be read."""


class CredentialsUnreadable(AnnexError):
    """git-annex's credential file exists but is unreadable or malformed."""


def with_complaint(message: str, complaint: str) -> str:
    """Append the child's standard error, if any, to `message`."""
    return f"{message}\n{complaint}" if complaint else message
