"""Compute checksums, for the backends whose keys contain one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from cluster_remote.p2p.key import Key

__all__ = ["Checksum"]

_ALGORITHMS: Mapping[str, str] = {
    "MD5": "md5",
    "SHA1": "sha1",
    "SHA224": "sha224",
    "SHA256": "sha256",
    "SHA384": "sha384",
    "SHA512": "sha512",
    "SHA3_224": "sha3_224",
    "SHA3_256": "sha3_256",
    "SHA3_384": "sha3_384",
    "SHA3_512": "sha3_512",
}


class Checksum:
    """An incremental checksum of a content, compared with the key's."""

    def __init__(self, algorithm: str, wanted: str) -> None:
        self._digest = hashlib.new(algorithm, usedforsecurity=False)
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
        return cls(algorithm, name.partition(".")[0] if extended else name)

    def update(self, chunk: bytes | memoryview) -> None:
        """Hash the next bytes of the content."""
        self._digest.update(chunk)

    def matches(self) -> bool:
        """Return whether the checksum of everything added matches the key's."""
        return self._digest.hexdigest() == self._wanted
