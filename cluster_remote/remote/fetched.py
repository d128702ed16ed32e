"""Remember, across runs, which content git-annex has fetched that only it can verify.

That is large content, chunks and encrypted content. If git-annex asks for it again, the last copy was wrong.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from cluster_remote.p2p.key import Key, decode

__all__ = ["FetchedBefore"]

# Seconds to remember content, and the most entries in the file.
_MEMORY = 24 * 3600
_MOST = 10_000


class FetchedBefore:
    """Keys in a file, one line each with the time. If the file is unusable, they are remembered for this run only."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._keys: Counter[str] | None = None

    def times(self, key: Key) -> int:
        """Return how often a key was added."""
        return self._loaded()[key.text]

    def add(self, key: Key) -> None:
        """Remember a key."""
        self._loaded()[key.text] += 1
        with suppress(OSError):
            self._file.parent.mkdir(mode=0o700, exist_ok=True)
            with self._file.open("ab") as file:
                file.write(f"{int(time.time())} ".encode() + bytes(key) + b"\n")

    def _loaded(self) -> Counter[str]:
        if self._keys is None:
            lines: list[bytes] = []
            with suppress(OSError):
                lines = self._file.read_bytes().splitlines()
            since = time.time() - _MEMORY
            recent = [line for line in lines[-_MOST:] if _time(line) >= since]
            self._keys = Counter(decode(line.partition(b" ")[2]) for line in recent)
            if len(lines) > _MOST:
                with suppress(OSError):
                    self._file.write_bytes(b"".join(line + b"\n" for line in recent))
        return self._keys


def _time(line: bytes) -> float:
    digits = line.partition(b" ")[0]
    return float(digits) if digits.isdigit() and len(digits) < 20 else 0.0
