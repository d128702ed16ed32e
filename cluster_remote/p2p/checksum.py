"""Compute checksums, for the backends whose keys contain one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Protocol

from cluster_remote.p2p.key import Key

__all__ = ["Checksum"]


class _Hash(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


def _named(name: str) -> Callable[[], _Hash]:
    return lambda: hashlib.new(name, usedforsecurity=False)


def _blake2(algorithm: Callable[..., _Hash], bits: int) -> Callable[[], _Hash]:
    return lambda: algorithm(digest_size=bits // 8)


_ALGORITHMS: Mapping[str, Callable[[], _Hash]] = {
    **{name: _named(name.lower()) for name in ("MD5", "SHA1", "SHA224", "SHA256", "SHA384", "SHA512")},
    **{f"SHA3_{bits}": _named(f"sha3_{bits}") for bits in (224, 256, 384, 512)},
    **{f"BLAKE2B{bits}": _blake2(hashlib.blake2b, bits) for bits in (160, 224, 256, 384, 512)},
    **{f"BLAKE2S{bits}": _blake2(hashlib.blake2s, bits) for bits in (160, 224, 256)},
}


class Checksum:
    """An incremental checksum of content, compared with the key's."""

    def __init__(self, digest: _Hash, wanted: str) -> None:
        self._digest = digest
        self._wanted = wanted

    @classmethod
    def of(cls, key: Key) -> Checksum | None:
        """Start a checksum for a key; None for chunk keys and for backends whose hash is not supported."""
        # Backends ending in E append the file's extension to the name.
        extended = key.backend.endswith("E")
        algorithm = _ALGORITHMS.get(key.backend.removesuffix("E"))
        if algorithm is None or key.is_chunk:
            return None
        name = key.text.partition("--")[2]
        return cls(algorithm(), name.partition(".")[0] if extended else name)

    def update(self, chunk: bytes | memoryview) -> None:
        """Hash the next bytes of the content."""
        self._digest.update(chunk)

    def matches(self) -> bool:
        """Return whether the checksum of everything added matches the key's."""
        return self._digest.hexdigest() == self._wanted
