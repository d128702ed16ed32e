"""Remember which large contents git-annex has fetched, across runs.

git-annex verifies these itself as they arrive. If it asks for one again, the content was wrong.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from cluster_remote.p2p.key import Key, decode

__all__ = ["FetchedBefore"]

# Seconds for which a content is remembered, and the most entries in the file.
_MEMORY = 24 * 3600
_MOST = 1000


class FetchedBefore:
    """Keys in a file, one line each with the time. If the file is unusable, they last for one run."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._keys: set[str] | None = None

    def __contains__(self, key: Key) -> bool:
        return key.text in self._loaded()

    def add(self, key: Key) -> None:
        """Remember a key."""
        known = self._loaded()
        if key.text in known:
            return
        known.add(key.text)
        with suppress(OSError):
            self._file.parent.mkdir(mode=0o700, exist_ok=True)
            with self._file.open("ab") as file:
                file.write(f"{int(time.time())} ".encode() + bytes(key) + b"\n")

    def _loaded(self) -> set[str]:
        if self._keys is None:
            lines: list[bytes] = []
            with suppress(OSError):
                lines = self._file.read_bytes().splitlines()
            since = time.time() - _MEMORY
            recent = [line for line in lines[-_MOST:] if _time(line) >= since]
            self._keys = {decode(line.partition(b" ")[2]) for line in recent}
            if len(lines) > _MOST:
                with suppress(OSError):
                    self._file.write_bytes(b"".join(line + b"\n" for line in recent))
        return self._keys


def _time(line: bytes) -> float:
    digits = line.partition(b" ")[0]
    return float(digits) if digits.isdigit() and len(digits) < 20 else 0.0
