"""Detect that a file has changed, without reading it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

__all__ = ["FileState", "state_of"]

FileState: TypeAlias = tuple[int, int, int, int]
"""What identifies the state of a file: device, inode, size and modification time."""


def state_of(file: Path) -> FileState | None:
    """Return the state of a file; None if it cannot be read. An equal state does not prove equal content."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
