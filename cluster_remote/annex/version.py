"""The oldest version of git-annex that this program works with."""

from __future__ import annotations

import re

__all__ = ["NEEDED", "OLDEST", "version_number"]

OLDEST = (10, 20250605)
"""Older versions fail or are untested; clusters were added in 10.20240731."""

NEEDED = ".".join(map(str, OLDEST))
"""The same as text, for messages."""


def version_number(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (10, 20250605) for 10.20250605-g123."""
    found = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
