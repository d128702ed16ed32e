"""Directories that only this user can use, or where nobody else can replace what is ours."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["make_private_directory", "others_can_replace"]


def others_can_replace(directory: Path) -> bool:
    """Return whether other users could replace a file or directory of ours in this one. Raises OSError."""
    status = directory.stat()
    if status.st_uid not in (0, os.geteuid()):
        return True
    return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and not status.st_mode & stat.S_ISVTX


def make_private_directory(directory: Path) -> None:
    """Create a directory and its missing parents with mode 0700, whatever the umask. Raises OSError."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        make_private_directory(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
