"""The exit codes of every command. They are documented: scripts rely on them."""

from __future__ import annotations

__all__ = ["FAILED", "INTERRUPTED", "NOT_USABLE", "OK", "UNREACHABLE", "USAGE"]

OK = 0
FAILED = 1
"""The operation failed, or a check found problems."""
USAGE = 2
"""The command line, or a parameter in it, is invalid."""
UNREACHABLE = 3
"""A server was unreachable, or gave no reliable answer."""
NOT_USABLE = 4
"""Not inside a git-annex repository."""
INTERRUPTED = 130
"""Interrupted by the user, as shells report it (128 + SIGINT); also by SIGTERM, which git-annex sends on SIGINT."""
