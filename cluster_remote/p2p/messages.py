"""Define the messages of git-annex's P2P protocol, versions 0 to 4, as a table. No I/O.

Each class below is one row: its decorator gives the word on the wire, the format of each field, and the version that
introduced the message. `parse` and `serialise` use these rows and are inverses for every valid message. `ANSWERS`
lists the answers to each request. Both follow the P2P protocol as observed with git-annex 10.20261026.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from cluster_remote.p2p.key import UUID, AssociatedFile, Key, decode, encode

# No file is larger; a longer DATA is a bug or an attack.
MAX_DATA_LENGTH = 2**63 - 1
_SERVICES = frozenset({"git-upload-pack", "git-receive-pack"})
_NUMBER = re.compile(rb"-?[0-9]{1,20}")

T = TypeVar("T")
M = TypeVar("M", bound="type[Message]")


class MalformedMessage(ValueError):
    """A line that is not a message of the protocol."""


class Message:
    """A message of the protocol: one of the classes below."""

    __slots__ = ()


# Field formats


@dataclass(frozen=True)
class _Form(Generic[T]):
    """The wire format of a field. `read` raises ValueError; `empty` is the value of an omitted field."""

    read: Callable[[bytes], T]
    write: Callable[[T], bytes]
    empty: T | None = None


def _number(what: str, lowest: int, highest: int) -> _Form[int]:
    def read(raw: bytes) -> int:
        if not _NUMBER.fullmatch(raw):
            raise MalformedMessage(f"{what} {decode(raw[:40])!r} is not a number")
        number = int(raw)
        if not lowest <= number <= highest:
            raise MalformedMessage(f"{what} {number} is out of range")
        return number

    return _Form(read, lambda number: b"%d" % number)


def _read_client(raw: bytes) -> UUID | None:
    try:
        return UUID(decode(raw)) if raw else None
    except ValueError:
        # Do not quote the word: if the client mixed up the order, it is the token.
        raise MalformedMessage("the first word is not a UUID") from None


def _read_service(raw: bytes) -> str:
    service = decode(raw)
    if service not in _SERVICES:
        raise MalformedMessage(f"{service[:40]!r} is not a service of git")
    return service


def _read_uuids(raw: bytes) -> frozenset[UUID]:
    return frozenset(UUID(decode(word)) for word in raw.split(b" ") if word)


def _write_uuids(uuids: frozenset[UUID]) -> bytes:
    return b" ".join(encode(uuid.text) for uuid in sorted(uuids))


_KEY = _Form(lambda raw: Key(decode(raw)), bytes)
_FILE = _Form(AssociatedFile.parse, bytes)
_UUID = _Form(lambda raw: UUID(decode(raw)), lambda uuid: encode(uuid.text))
_UUIDS: _Form[frozenset[UUID]] = _Form(_read_uuids, _write_uuids, frozenset())
_CLIENT = _Form(_read_client, lambda client: encode(client.text if client else ""))
_TOKEN = _Form(decode, encode)
_SERVICE = _Form(_read_service, encode)
_TEXT = _Form(decode, lambda text: encode(text.replace("\n", " ")), "")
_REFS: _Form[tuple[str, ...]] = _Form(
    lambda raw: tuple(word for word in decode(raw).split(" ") if word), lambda refs: encode(" ".join(refs)), ()
)
_OFFSET = _number("the offset", 0, MAX_DATA_LENGTH)
_LENGTH = _number("the length", 0, MAX_DATA_LENGTH)
# Converting a timestamp between clocks can make it negative, which means the past.
_TIMESTAMP = _number("the timestamp", -MAX_DATA_LENGTH, MAX_DATA_LENGTH)
_VERSION = _number("the version", 0, 10**6)
_EXIT_CODE = _number("the exit code", -(2**31), 2**31)


class _Row:
    """One message on the wire."""

    __slots__ = ("forms", "kind", "names", "since", "without_parameters", "word")

    def __init__(self, word: str, kind: type[Message], forms: tuple[_Form[Any], ...], since: int) -> None:
        self.word = word.encode("ascii")
        self.kind: Callable[..., Message] = kind
        self.forms = forms
        self.since = since
        self.names = tuple(field.name for field in fields(kind))  # type: ignore[arg-type] # every message is a dataclass
        self.without_parameters: Message | None = None
        """The message for a bare word without parameters; None if parameters are required."""
        if all(form.empty is not None for form in forms):
            self.without_parameters = self.kind(*(form.empty for form in forms))

    def read(self, raw: bytes | None) -> Message:
        """Parse the parameters; None means that the line ended after the word. Raises ValueError."""
        if raw is None:
            if self.without_parameters is None:
                raise MalformedMessage(f"{decode(self.word)} without its parameters")
            return self.without_parameters
        if not self.forms:
            raise MalformedMessage(f"{decode(self.word)} takes no parameters")
        words = raw.split(b" ", len(self.forms) - 1)
        if len(words) < len(self.forms):
            raise MalformedMessage("a word is missing")
        return self.kind(*(form.read(word) for form, word in zip(self.forms, words, strict=True)))

    def write(self, message: Message) -> bytes:
        words = [self.word]
        for form, name in zip(self.forms, self.names, strict=True):
            words.append(form.write(getattr(message, name)))
        return b" ".join(words)


_BY_WORD: dict[bytes, _Row] = {}
_BY_KIND: dict[type[Message], _Row] = {}


def _wire(word: str, *forms: _Form[Any], since: int = 0) -> Callable[[M], M]:
    """Register a message: its word, its fields in order, and the version that introduced it."""

    def register(kind: M) -> M:
        row = _Row(word, kind, forms, since)
        _BY_WORD[row.word] = _BY_KIND[kind] = row
        return kind

    return register


# Opening


@_wire("AUTH", _CLIENT, _TOKEN)
@dataclass(frozen=True, slots=True)
class Auth(Message):
    """Authenticate on a socket, as the client's first message. Our gateway also accepts `TOKEN/UUID` as the token.

    A client may have no UUID: `git clone` sends none, because its repository does not exist yet.
    """

    client: UUID | None
    token: str

    def __repr__(self) -> str:
        return f"Auth(client={self.client}, token=…)"


@_wire("AUTH-SUCCESS", _UUID)
@dataclass(frozen=True, slots=True)
class AuthSuccess(Message):
    uuid: UUID


@_wire("AUTH-FAILURE")
@dataclass(frozen=True, slots=True)
class AuthFailure(Message):
    pass


@_wire("VERSION", _VERSION)
@dataclass(frozen=True, slots=True)
class Version(Message):
    number: int


@_wire("BYPASS", _UUIDS, since=2)
@dataclass(frozen=True, slots=True)
class Bypass(Message):
    """List gateways to bypass, which prevents loops; has no reply."""

    uuids: frozenset[UUID]


# Presence, removal, locks


@_wire("CHECKPRESENT", _KEY)
@dataclass(frozen=True, slots=True)
class CheckPresent(Message):
    key: Key


@_wire("LOCKCONTENT", _KEY)
@dataclass(frozen=True, slots=True)
class LockContent(Message):
    key: Key


@_wire("UNLOCKCONTENT")
@dataclass(frozen=True, slots=True)
class UnlockContent(Message):
    pass


@_wire("REMOVE", _KEY)
@dataclass(frozen=True, slots=True)
class Remove(Message):
    key: Key


@_wire("REMOVE-BEFORE", _TIMESTAMP, _KEY, since=3)
@dataclass(frozen=True, slots=True)
class RemoveBefore(Message):
    """Remove the content unless the server's clock (see GetTimestamp) has passed `timestamp` seconds."""

    timestamp: int
    key: Key


@_wire("GETTIMESTAMP", since=3)
@dataclass(frozen=True, slots=True)
class GetTimestamp(Message):
    pass


@_wire("TIMESTAMP", _TIMESTAMP, since=3)
@dataclass(frozen=True, slots=True)
class Timestamp(Message):
    """Report the server's monotonic clock in seconds."""

    seconds: int


# Content


@_wire("GET", _OFFSET, _FILE, _KEY)
@dataclass(frozen=True, slots=True)
class Get(Message):
    """Request the content of a key, starting at byte `offset`."""

    offset: int
    file: AssociatedFile
    key: Key


@_wire("PUT", _FILE, _KEY)
@dataclass(frozen=True, slots=True)
class Put(Message):
    file: AssociatedFile
    key: Key


@_wire("PUT-FROM", _OFFSET)
@dataclass(frozen=True, slots=True)
class PutFrom(Message):
    """Request the content of a PUT, starting at byte `offset`."""

    offset: int


@_wire("ALREADY-HAVE")
@dataclass(frozen=True, slots=True)
class AlreadyHave(Message):
    pass


@_wire("ALREADY-HAVE-PLUS", _UUIDS, since=2)
@dataclass(frozen=True, slots=True)
class AlreadyHavePlus(Message):
    uuids: frozenset[UUID]


@_wire("DATA", _LENGTH)
@dataclass(frozen=True, slots=True)
class Data(Message):
    """Announce exactly `length` raw bytes after the line."""

    length: int


@_wire("DATA-PRESENT", since=4)
@dataclass(frozen=True, slots=True)
class DataPresent(Message):
    """Replace Data in a PUT: the content reached the server some other way."""


@_wire("VALID", since=1)
@dataclass(frozen=True, slots=True)
class Valid(Message):
    pass


@_wire("INVALID", since=1)
@dataclass(frozen=True, slots=True)
class Invalid(Message):
    pass


# Outcomes


@_wire("SUCCESS")
@dataclass(frozen=True, slots=True)
class Success(Message):
    pass


@_wire("SUCCESS-PLUS", _UUIDS, since=2)
@dataclass(frozen=True, slots=True)
class SuccessPlus(Message):
    uuids: frozenset[UUID]


@_wire("FAILURE")
@dataclass(frozen=True, slots=True)
class Failure(Message):
    pass


@_wire("FAILURE-PLUS", _UUIDS, since=2)
@dataclass(frozen=True, slots=True)
class FailurePlus(Message):
    uuids: frozenset[UUID]


@_wire("ERROR", _TEXT)
@dataclass(frozen=True, slots=True)
class Error(Message):
    text: str


# Git


@_wire("CONNECT", _SERVICE)
@dataclass(frozen=True, slots=True)
class Connect(Message):
    """Run `git-upload-pack` or `git-receive-pack` in the server's git repository."""

    service: str


@_wire("CONNECTDONE", _EXIT_CODE)
@dataclass(frozen=True, slots=True)
class ConnectDone(Message):
    exit_code: int


@_wire("NOTIFYCHANGE")
@dataclass(frozen=True, slots=True)
class NotifyChange(Message):
    pass


@_wire("CHANGED", _REFS)
@dataclass(frozen=True, slots=True)
class Changed(Message):
    refs: tuple[str, ...]


# Every type of message, in the order of this file.
MESSAGES: tuple[type[Message], ...] = tuple(_BY_KIND)

_DONE = True
_CONTINUES = False
_STORED: Mapping[type[Message], bool] = {Success: _DONE, SuccessPlus: _DONE, Failure: _DONE, FailurePlus: _DONE}

# The possible answers to each request, and whether they end it and so free the connection for the next one. ERROR is
# always possible and ends the request.
ANSWERS: Mapping[type[Message], Mapping[type[Message], bool]] = {
    CheckPresent: {Success: _DONE, Failure: _DONE},
    LockContent: {Success: _CONTINUES, Failure: _DONE},
    Remove: _STORED,
    RemoveBefore: _STORED,
    GetTimestamp: {Timestamp: _DONE},
    Put: {PutFrom: _CONTINUES, AlreadyHave: _DONE, AlreadyHavePlus: _DONE},
    Get: {Data: _CONTINUES},
    # After the content of a PUT, in versions 1 and up, and in version 0.
    Valid: _STORED,
    Invalid: _STORED,
    Data: _STORED,
    DataPresent: _STORED,
}


def since(message: type[Message] | Message) -> int:
    """Return the first protocol version that has a message."""
    return _BY_KIND[message if isinstance(message, type) else type(message)].since


def word(message: type[Message]) -> str:
    """Return the word that begins a message on the wire."""
    return decode(_BY_KIND[message].word)


def expected_answers(request: type[Message]) -> str:
    """Return the possible answers to a request as text for an error, such as "PUT-FROM or ALREADY-HAVE"."""
    words = [word(answer) for answer in ANSWERS[request]]
    # The -PLUS variants are implied.
    plain = [each for each in words if each.removesuffix("-PLUS") not in words or not each.endswith("-PLUS")]
    return " or ".join(plain)


def serialise(message: Message) -> bytes:
    """Return a message in wire format, including the newline.

    Raises ValueError for a message that contains a newline, which the peer would read as two; never quotes a token.
    """
    line = _BY_KIND[type(message)].write(message)
    if b"\n" in line:
        raise ValueError(f"a {type(message).__name__} message cannot have a newline in it")
    return line + b"\n"


def parse(line: bytes) -> Message:
    """Parse one line without its newline.

    Raises MalformedMessage, which says what is wrong but never quotes a token.
    """
    first, space, rest = line.partition(b" ")
    row = _BY_WORD.get(first)
    if row is not None:
        try:
            return row.read(rest if space else None)
        except ValueError as error:
            raise MalformedMessage(f"{decode(first)}: {error}") from None
    if first[:4].upper() == b"AUTH":
        # After a misspelt AUTH this word may contain the token.
        raise MalformedMessage("unknown message that begins like AUTH")
    raise MalformedMessage(f"unknown message {decode(first[:40])!r}")


def describe(message: Message) -> str:
    """Return a message as text for logs, with the token redacted."""
    if isinstance(message, Auth):
        return f"AUTH {message.client or ''} [token]"
    return decode(serialise(message).rstrip(b"\n"))
