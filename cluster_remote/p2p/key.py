"""Define the values that the protocol passes around: keys, UUIDs, associated files.

They are text; bytes that are not valid UTF-8 survive a round trip as surrogate escapes. Constructors reject invalid
values, so nothing unchecked can reach a peer (git-annex's cluster session never answers a malformed key).
"""

from __future__ import annotations

import re

__all__ = ["UUID", "AssociatedFile", "Key", "decode", "encode"]

# ASCII whitespace according to Haskell's isSpace, where git-annex splits its messages.
_WHITESPACE = " \t\n\r\f\v"
# git-annex's backends whose keys contain a checksum.
_HASHES = re.compile(r"(?:SHA|MD5|BLAKE|SKEIN)[0-9A-Z_]*\Z")
# What `git annex examinekey` accepts, less whitespace: any backend, fields in this order only, also an empty name.
_KEY = re.compile(
    r"(?P<backend>[^ \t\n\r\f\v\0-]+)"
    r"(?:-s(?P<size>[0-9]+))?"
    r"(?:-m(?P<mtime>[0-9]+))?"
    r"(?:-S(?P<chunk_size>[0-9]+))?"
    r"(?:-C(?P<chunk>[0-9]+))?"
    r"--(?P<name>[^ \t\n\r\f\v\0]*)",
    re.DOTALL,
)
_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
# The largest size that fits in a signed 64-bit integer, as file systems use.
_MAX_SIZE = 2**63 - 1


def decode(raw: bytes) -> str:
    """Decode bytes from the wire or a file name to text that `encode` turns back into the same bytes."""
    return raw.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Invert `decode`."""
    return text.encode("utf-8", "surrogateescape")


def _check_encodable(text: str) -> None:
    """Raise ValueError for text that cannot be encoded: it comes neither from UTF-8 nor from `decode`."""
    try:
        encode(text)
    except UnicodeEncodeError:
        raise ValueError(f"{text[:200]!r} contains characters that cannot be written as bytes") from None


class _Text:
    """An immutable text value, equal to the same text of the same class and ordered by it.

    Not a dataclass, because importing dataclasses would double the run time of a program that transfers nothing.
    """

    __slots__ = ("text",)

    text: str

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "text", text)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} cannot be changed")

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, _Text) and type(other) is type(self) else NotImplemented

    def __lt__(self, other: _Text) -> bool:
        return self.text < other.text if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.text,)


class UUID(_Text):
    """The UUID of a repository, a special remote or a cluster, in lower case as git-annex writes it."""

    __slots__ = ()

    def __init__(self, text: str) -> None:
        """Check the text. Raises ValueError for anything but 8-4-4-4-12 hexadecimal digits."""
        if not _UUID.fullmatch(text):
            raise ValueError(f"{text[:64]!r} is not a UUID")
        super().__init__(text.lower())

    @classmethod
    def if_valid(cls, text: str | None) -> UUID | None:
        """Parse a UUID; None for anything else."""
        try:
            return cls(text or "")
        except ValueError:
            return None

    @property
    def is_cluster(self) -> bool:
        """Return whether this is a cluster's UUID: version 8, first octet 0xac (as git-annex marks them)."""
        return self.text.startswith("ac") and self.text[14] == "8"


class Key(_Text):
    """A git-annex key: `BACKEND[-sSIZE][-mMTIME][-SCHUNKSIZE-CCHUNKNUM]--NAME`."""

    __slots__ = ()

    def __init__(self, text: str) -> None:
        """Check the text. Raises ValueError if it is not a key; keys contain no whitespace."""
        match = _KEY.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:200]!r} is not a key of git-annex (BACKEND-sSIZE--NAME)")
        digits = (match["size"] or "").lstrip("0")
        if len(digits) > len(str(_MAX_SIZE)) or int(digits or 0) > _MAX_SIZE:
            raise ValueError(f"{text[:200]!r}: the size in this key is larger than any file can be")
        _check_encodable(text)
        super().__init__(text)

    @property
    def backend(self) -> str:
        return self.text.partition("-")[0]

    @property
    def size(self) -> int | None:
        """Return the key's size field in bytes, or None. For a chunk key, this is the size of the whole file."""
        match = _KEY.fullmatch(self.text)
        assert match is not None
        return None if match["size"] is None else int(match["size"].lstrip("0") or 0)

    @property
    def is_chunk(self) -> bool:
        match = _KEY.fullmatch(self.text)
        assert match is not None
        return match["chunk"] is not None or match["chunk_size"] is not None

    @property
    def content_size(self) -> int | None:
        """Return the bytes that a transfer of this key moves, or None if unknown.

        The size field of a chunk key is that of the whole file, and the last chunk is shorter, so it does not tell; an
        encrypted key has no size field.
        """
        return None if self.is_chunk else self.size

    @property
    def is_encrypted(self) -> bool:
        """Return whether the content is encrypted by a special remote (git-annex names such keys by an HMAC)."""
        return self.backend.startswith("GPGHMAC")

    @property
    def has_checksum(self) -> bool:
        """Return whether a repository verifies this content by a checksum; WORM and URL keys have none, for instance.

        False for external backends, which only git-annex knows.
        """
        return _HASHES.match(self.backend) is not None and not self.is_chunk

    @property
    def is_verifiable(self) -> bool:
        """Return whether a reader can detect wrong content by checksum, for a chunk once the file is reassembled."""
        # Repositories store a chunk under a WORM key named after the chunk's own key.
        inner = _KEY.fullmatch(self.text.partition("--")[2]) if self.backend == "WORM" else None
        of_file = inner if inner is not None and inner["chunk"] is not None else _KEY.fullmatch(self.text)
        assert of_file is not None
        return _HASHES.match(of_file["backend"]) is not None

    def __bytes__(self) -> bytes:
        return encode(self.text)


class AssociatedFile(_Text):
    """The work tree file of a key, or none (the empty text). Preferred content may depend on it."""

    __slots__ = ()

    def __init__(self, text: str = "") -> None:
        """Check the path. Raises ValueError if it is absolute."""
        if text.startswith("/"):
            raise ValueError(f"associated file {text[:200]!r} is an absolute path")
        _check_encodable(text)
        super().__init__(text)

    def __bytes__(self) -> bytes:
        """Return the wire format: `%` doubled, each whitespace character written as `%`."""
        escaped = self.text.replace("%", "%%")
        return encode("".join("%" if c.isspace() or c in _WHITESPACE else c for c in escaped))

    @classmethod
    def parse(cls, raw: bytes) -> AssociatedFile:
        """Read the wire format. A lone `%` and every control character become `_`, as in git-annex.

        Raises ValueError for an absolute path.
        """
        text = decode(raw)
        parts = [part.replace("%", "_") for part in text.split("%%")]
        return cls("".join(c if c.isprintable() or ord(c) > 0x9F else "_" for c in "%".join(parts)))
