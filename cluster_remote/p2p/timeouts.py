"""How long to wait for a peer, in seconds."""

from __future__ import annotations

__all__ = ["DEFAULT_TIMEOUT", "extra_timeout_for", "reading_time"]

DEFAULT_TIMEOUT = 60.0
# A peer that has received everything may still have to hash it, or upload it to a bucket over a home connection,
# before it answers; no bytes move meanwhile. So the timeout grows with the content, at this rate.
_BYTES_PROCESSED_PER_SECOND = 1024 * 1024
# Speed of a slow disk: a server may hash a partial upload before it says where to resume.
_BYTES_READ_PER_SECOND = 32 * 1024 * 1024


def extra_timeout_for(size: int | None) -> float:
    """Return the extra seconds a peer gets to process `size` bytes of content.

    It may have to move them to or from other storage, such as a bucket.
    """
    return (size or 0) / _BYTES_PROCESSED_PER_SECOND


def reading_time(size: int | None) -> float:
    """Return the extra seconds a peer gets to read `size` bytes of content from its disk."""
    return (size or 0) / _BYTES_READ_PER_SECOND
