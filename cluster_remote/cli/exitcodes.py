"""What the exit code of every command means. Documented: scripts rely on it."""

from __future__ import annotations

__all__ = ["FAILED", "INTERRUPTED", "NOT_USABLE", "OK", "UNREACHABLE", "USAGE"]

OK = 0
FAILED = 1
"""What was asked for did not succeed, or was found not to be so."""
USAGE = 2
"""The command line, or a parameter in it, cannot be used."""
UNREACHABLE = 3
"""A server could not be reached, or gave no answer that can be relied on."""
NOT_USABLE = 4
"""Not inside a repository of git-annex."""
INTERRUPTED = 130
"""By the user, as shells have it (128 + SIGINT); by SIGTERM too, which git-annex makes of a SIGINT."""
