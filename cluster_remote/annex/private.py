"""Create directories that only this user can use."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["make_private_directory"]


def make_private_directory(directory: Path) -> None:
    """Create a directory and its missing parents with mode 0700, whatever the umask. Raises OSError."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        make_private_directory(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
