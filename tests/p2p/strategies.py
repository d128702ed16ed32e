"""Strategies for the protocol's values: every possible one, odd ones first."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import strategies as st

from cluster_remote.p2p.key import UUID, AssociatedFile, Key, decode
from cluster_remote.p2p.messages import MAX_DATA_LENGTH, MESSAGES, Message

WHITESPACE = b" \t\n\r\f\v"


def _bytes_without(forbidden: bytes, min_size: int = 0, max_size: int = 20) -> st.SearchStrategy[bytes]:
    allowed = bytes(b for b in range(256) if b not in forbidden)
    return st.lists(st.sampled_from(allowed), min_size=min_size, max_size=max_size).map(bytes)


def _field(letter: str, highest: int) -> st.SearchStrategy[bytes]:
    """Generate an optional field of a key."""
    numbers = st.integers(0, highest).map(lambda n: f"-{letter}{n}".encode())
    return st.just(b"") | numbers


# What is between the dashes: first of all what keys really have, then any bytes that are not refused.
_backends = st.sampled_from([b"SHA256E", b"WORM", b"URL", b"XFOO", b"GPGHMACSHA1"]) | _bytes_without(
    WHITESPACE + b"\0-", min_size=1
)
_names = st.sampled_from([b"abc.txt", b"-", b"a--b", b"%", b"&s", b"\xff\xfe", b"\x01\x1b["]) | _bytes_without(
    WHITESPACE + b"\0"
)

key_bytes = st.builds(
    lambda backend, size, mtime, chunk_size, chunk, name: backend + size + mtime + chunk_size + chunk + b"--" + name,
    _backends,
    _field("s", 2**63 - 1),
    _field("m", 2**40),
    _field("S", 2**40),
    _field("C", 10**6),
    _names,
)
keys = key_bytes.map(lambda raw: Key(decode(raw)))

uuids = st.uuids().map(lambda value: UUID(str(value)))
uuid_sets = st.frozensets(uuids, max_size=4)

# Names of files as git gives them: any bytes but NUL, relative.
file_names = _bytes_without(b"\0").filter(lambda raw: not raw.startswith(b"/"))
# Those that survive the wire unchanged.
plain_file_names = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Cs", "Zs", "Zl", "Zp", "Cn", "Co")), max_size=20
).filter(lambda text: not text.startswith("/"))

_line = _bytes_without(b"\n").map(decode)
_word = _bytes_without(b"\n ", min_size=1).map(decode)
_sizes = st.integers(0, MAX_DATA_LENGTH)
_timestamps = st.integers(-MAX_DATA_LENGTH, MAX_DATA_LENGTH)
_files = plain_file_names.map(AssociatedFile)

# What a field of a message can be, by its name.
_by_field: dict[str, st.SearchStrategy[object]] = {
    "client": st.none() | uuids,
    "token": _line,
    "uuid": uuids,
    "uuids": uuid_sets,
    "key": keys,
    "file": _files,
    "offset": _sizes,
    "length": _sizes,
    "timestamp": _timestamps,
    "seconds": _timestamps,
    "number": st.integers(0, 10**6),
    "exit_code": st.integers(-(2**31), 2**31),
    "text": _line,
    "service": st.sampled_from(["git-upload-pack", "git-receive-pack"]),
    "refs": st.lists(_word, max_size=4).map(tuple),
}


def messages_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    """Generate messages of one type."""
    return st.builds(kind, **{field.name: _by_field[field.name] for field in fields(kind)})  # type: ignore[arg-type]


messages = st.one_of(*map(messages_of, MESSAGES))
