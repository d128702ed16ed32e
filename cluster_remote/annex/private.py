"""Create directories that only this user can use."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["make_private"]


def make_private(directory: Path) -> None:
    """Create a directory and its missing parents with mode 0700, whatever the umask. Raises OSError."""
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
