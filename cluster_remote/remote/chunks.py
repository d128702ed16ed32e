"""Map unencrypted chunks to keys under which repositories accept them.

A git-annex repository checks that content has the size and checksum in its key. A chunk's key has those of the whole
file, so no repository would accept it (observed with git-annex 10.20261026: `Verification of content failed`).
Encrypted content has keys with neither.
"""

from __future__ import annotations

from cluster_remote.p2p.key import Key

__all__ = ["is_plain_chunk", "stored_as", "whole_of"]


def is_plain_chunk(key: Key) -> bool:
    """Return whether a key is that of an unencrypted chunk."""
    return key.is_chunk and not key.is_encrypted


def whole_of(key: Key) -> Key:
    """Return the key of the content that a chunk is a part of."""
    fields, separator, name = key.text.partition("--")
    kept = [field for number, field in enumerate(fields.split("-")) if number == 0 or field[0] not in "SC"]
    return Key("-".join(kept) + separator + name)


def stored_as(key: Key) -> Key:
    """Return the key under which a repository stores the content of `key`: `key` itself, unless it is a chunk.

    A chunk gets a WORM key, which is verified only by size: the chunk's own size, with its key as the name.
    """
    if not is_plain_chunk(key):
        return key
    length = _length(key)
    return Key(f"WORM--{key}" if length is None else f"WORM-s{length}--{key}")


def _length(key: Key) -> int | None:
    """Return the chunk's length in bytes; None if its key lacks a field. Only the last chunk may be shorter."""
    _backend, *fields = key.text.partition("--")[0].split("-")
    numbers = {field[0]: int(field[1:]) for field in fields}
    if not {"s", "S", "C"} <= numbers.keys():
        return None
    left = numbers["s"] - (numbers["C"] - 1) * numbers["S"]
    return min(left, numbers["S"]) if left >= 0 else None
