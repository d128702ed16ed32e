"""Chunks that are not encrypted, in repositories that verify what they store.

A repository of git-annex checks that a content has the size and the checksum which its key says. A chunk's key says
those of the whole file, so no repository would take it (observed with git-annex 10.20261026: `Verification of content
failed`). Encrypted contents have keys that say neither.
"""

from __future__ import annotations

from cluster_remote.p2p.key import Key

__all__ = ["stored_as"]


def stored_as(key: Key) -> Key:
    """The key under which the content of `key` lies in a repository: `key` itself, unless it is a chunk's.

    A chunk's becomes a WORM key, which is verified by its size alone, with the chunk's own size and its key as name.
    """
    if not key.is_chunk or key.is_encrypted:
        return key
    length = _length(key)
    return Key(f"WORM--{key}" if length is None else f"WORM-s{length}--{key}")


def _length(key: Key) -> int | None:
    """How many bytes the chunk has, where its key tells: all chunks but the last are as long as each other."""
    _backend, *fields = key.text.partition("--")[0].split("-")
    numbers = {field[0]: int(field[1:]) for field in fields}
    if not {"s", "S", "C"} <= numbers.keys():
        return None
    left = numbers["s"] - (numbers["C"] - 1) * numbers["S"]
    return min(left, numbers["S"]) if left >= 0 else None
