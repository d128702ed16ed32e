"""The oldest version of git-annex that this program works with."""

from __future__ import annotations

import re

__all__ = ["NEEDED", "OLDEST", "version_number"]

OLDEST = (10, 20250605)
"""Older ones were not tried, or failed: clusters are there since 10.20240731."""

NEEDED = ".".join(map(str, OLDEST))
"""The same as text, for messages."""


def version_number(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with: 10.20250605-g123 is (10, 20250605)."""
    found = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
