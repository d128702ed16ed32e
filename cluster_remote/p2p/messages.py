"""Every message of the protocol, versions 0 to 4, as a value. No I/O.

The form on the wire and the version that each message came with are those of git-annex's P2P protocol
(as observed with git-annex 10.20261026). `parse` and `serialise` are inverses for every valid message.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from cluster_remote.p2p.key import UUID, AssociatedFile, Key, decode, encode

__all__ = [
    "MAX_DATA_LENGTH",
    "AlreadyHave",
    "AlreadyHavePlus",
    "Auth",
    "AuthFailure",
    "AuthSuccess",
    "Bypass",
    "Changed",
    "CheckPresent",
    "Connect",
    "ConnectDone",
    "Data",
    "DataPresent",
    "Error",
    "Failure",
    "FailurePlus",
    "Get",
    "GetTimestamp",
    "Invalid",
    "LockContent",
    "MalformedMessage",
    "Message",
    "NotifyChange",
    "Put",
    "PutFrom",
    "Remove",
    "RemoveBefore",
    "Success",
    "SuccessPlus",
    "Timestamp",
    "UnlockContent",
    "Valid",
    "Version",
    "describe",
    "parse",
    "serialise",
    "since",
]

# A file cannot be larger; a longer DATA is a mistake or an attack.
MAX_DATA_LENGTH = 2**63 - 1
_SERVICES = frozenset({b"git-upload-pack", b"git-receive-pack"})
_NUMBER = re.compile(rb"-?[0-9]{1,20}")


class MalformedMessage(ValueError):
    """A line that is no message of the protocol."""


@dataclass(frozen=True, slots=True)
class Auth:
    """A client's first message on a socket. The token may be `TOKEN/UUID`, as our gateway reads it.

    A client may have no UUID: git clone, for the repository is still to be made.
    """

    client: UUID | None
    token: str

    def __repr__(self) -> str:
        return f"Auth(client={self.client}, token=…)"


@dataclass(frozen=True, slots=True)
class AuthSuccess:
    uuid: UUID


@dataclass(frozen=True, slots=True)
class AuthFailure:
    pass


@dataclass(frozen=True, slots=True)
class Version:
    number: int


@dataclass(frozen=True, slots=True)
class Bypass:
    """Gateways not to go through again; has no reply."""

    uuids: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class CheckPresent:
    key: Key


@dataclass(frozen=True, slots=True)
class LockContent:
    key: Key


@dataclass(frozen=True, slots=True)
class UnlockContent:
    pass


@dataclass(frozen=True, slots=True)
class Remove:
    key: Key


@dataclass(frozen=True, slots=True)
class RemoveBefore:
    """Remove, unless the server's own clock (see GetTimestamp) has passed `timestamp` seconds."""

    timestamp: int
    key: Key


@dataclass(frozen=True, slots=True)
class GetTimestamp:
    pass


@dataclass(frozen=True, slots=True)
class Timestamp:
    """Seconds of a monotonic clock of the server."""

    seconds: int


@dataclass(frozen=True, slots=True)
class Get:
    """Offset in bytes from the start of the content."""

    offset: int
    file: AssociatedFile
    key: Key


@dataclass(frozen=True, slots=True)
class Put:
    file: AssociatedFile
    key: Key


@dataclass(frozen=True, slots=True)
class PutFrom:
    offset: int


@dataclass(frozen=True, slots=True)
class AlreadyHave:
    pass


@dataclass(frozen=True, slots=True)
class AlreadyHavePlus:
    uuids: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class Data:
    """Announces exactly `length` raw bytes, which follow the line."""

    length: int


@dataclass(frozen=True, slots=True)
class DataPresent:
    """In place of Data in a PUT: the content reached the server some other way."""


@dataclass(frozen=True, slots=True)
class Valid:
    pass


@dataclass(frozen=True, slots=True)
class Invalid:
    pass


@dataclass(frozen=True, slots=True)
class Success:
    pass


@dataclass(frozen=True, slots=True)
class SuccessPlus:
    uuids: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class Failure:
    pass


@dataclass(frozen=True, slots=True)
class FailurePlus:
    uuids: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class Error:
    text: str


@dataclass(frozen=True, slots=True)
class Connect:
    """`service` is `git-upload-pack` or `git-receive-pack`."""

    service: str


@dataclass(frozen=True, slots=True)
class ConnectDone:
    exit_code: int


@dataclass(frozen=True, slots=True)
class NotifyChange:
    pass


@dataclass(frozen=True, slots=True)
class Changed:
    refs: tuple[str, ...]


Message: TypeAlias = (
    Auth
    | AuthSuccess
    | AuthFailure
    | Version
    | Bypass
    | CheckPresent
    | LockContent
    | UnlockContent
    | Remove
    | RemoveBefore
    | GetTimestamp
    | Timestamp
    | Get
    | Put
    | PutFrom
    | AlreadyHave
    | AlreadyHavePlus
    | Data
    | DataPresent
    | Valid
    | Invalid
    | Success
    | SuccessPlus
    | Failure
    | FailurePlus
    | Error
    | Connect
    | ConnectDone
    | NotifyChange
    | Changed
)

# The version that brought each message; what is not listed has been there from the start.
_SINCE: dict[type[Message], int] = {
    Valid: 1,
    Invalid: 1,
    Bypass: 2,
    SuccessPlus: 2,
    FailurePlus: 2,
    AlreadyHavePlus: 2,
    GetTimestamp: 3,
    Timestamp: 3,
    RemoveBefore: 3,
    DataPresent: 4,
}


def since(message: type[Message] | Message) -> int:
    """The protocol version from which on a message may be sent."""
    return _SINCE.get(message if isinstance(message, type) else type(message), 0)


def _uuid_words(uuids: frozenset[UUID]) -> bytes:
    return b" ".join(encode(uuid.text) for uuid in sorted(uuids))


def serialise(message: Message) -> bytes:
    """The line on the wire, with its newline.

    Raises ValueError for a message with a newline in it, which the peer would read as two; it never repeats a token.
    """
    line = b" ".join(_words(message))
    if b"\n" in line:
        raise ValueError(f"a {type(message).__name__} message cannot have a newline in it")
    return line + b"\n"


def _words(message: Message) -> tuple[bytes, ...]:
    match message:
        case Auth(client, token):
            return b"AUTH", encode(client.text if client else ""), encode(token)
        case AuthSuccess(uuid):
            return b"AUTH-SUCCESS", encode(uuid.text)
        case AuthFailure():
            return (b"AUTH-FAILURE",)
        case Version(number):
            return b"VERSION", b"%d" % number
        case Bypass(uuids):
            return b"BYPASS", _uuid_words(uuids)
        case CheckPresent(key):
            return b"CHECKPRESENT", bytes(key)
        case LockContent(key):
            return b"LOCKCONTENT", bytes(key)
        case UnlockContent():
            return (b"UNLOCKCONTENT",)
        case Remove(key):
            return b"REMOVE", bytes(key)
        case RemoveBefore(timestamp, key):
            return b"REMOVE-BEFORE", b"%d" % timestamp, bytes(key)
        case GetTimestamp():
            return (b"GETTIMESTAMP",)
        case Timestamp(seconds):
            return b"TIMESTAMP", b"%d" % seconds
        case Get(offset, file, key):
            return b"GET", b"%d" % offset, bytes(file), bytes(key)
        case Put(file, key):
            return b"PUT", bytes(file), bytes(key)
        case PutFrom(offset):
            return b"PUT-FROM", b"%d" % offset
        case AlreadyHave():
            return (b"ALREADY-HAVE",)
        case AlreadyHavePlus(uuids):
            return b"ALREADY-HAVE-PLUS", _uuid_words(uuids)
        case Data(length):
            return b"DATA", b"%d" % length
        case DataPresent():
            return (b"DATA-PRESENT",)
        case Valid():
            return (b"VALID",)
        case Invalid():
            return (b"INVALID",)
        case Success():
            return (b"SUCCESS",)
        case SuccessPlus(uuids):
            return b"SUCCESS-PLUS", _uuid_words(uuids)
        case Failure():
            return (b"FAILURE",)
        case FailurePlus(uuids):
            return b"FAILURE-PLUS", _uuid_words(uuids)
        case Error(text):
            return b"ERROR", encode(text.replace("\n", " "))
        case Connect(service):
            return b"CONNECT", encode(service)
        case ConnectDone(exit_code):
            return b"CONNECTDONE", b"%d" % exit_code
        case NotifyChange():
            return (b"NOTIFYCHANGE",)
        case Changed(refs):
            return b"CHANGED", encode(" ".join(refs))


def _number(raw: bytes, what: str, lowest: int, highest: int) -> int:
    if not _NUMBER.fullmatch(raw):
        raise MalformedMessage(f"{what} {decode(raw[:40])!r} is not a number")
    number = int(raw)
    if not lowest <= number <= highest:
        raise MalformedMessage(f"{what} {number} is out of range")
    return number


def _size(raw: bytes, what: str) -> int:
    return _number(raw, what, 0, MAX_DATA_LENGTH)


def _uuids(raw: bytes) -> frozenset[UUID]:
    return frozenset(UUID(decode(word)) for word in raw.split(b" ") if word)


def _two(raw: bytes) -> tuple[bytes, bytes]:
    first, space, rest = raw.partition(b" ")
    if not space:
        raise MalformedMessage("a word is missing")
    return first, rest


def _parse_auth(raw: bytes) -> Auth:
    client, token = _two(raw)
    try:
        uuid = UUID(decode(client)) if client else None
    except ValueError:
        # Not with the word itself: where the order is wrong, that is the token.
        raise MalformedMessage("the first word is not a UUID") from None
    return Auth(uuid, decode(token))


def _parse_remove_before(raw: bytes) -> RemoveBefore:
    timestamp, key = _two(raw)
    return RemoveBefore(_timestamp(timestamp), Key(decode(key)))


def _parse_get(raw: bytes) -> Get:
    offset, rest = _two(raw)
    file, key = _two(rest)
    return Get(_size(offset, "the offset"), AssociatedFile.parse(file), Key(decode(key)))


def _parse_put(raw: bytes) -> Put:
    file, key = _two(raw)
    return Put(AssociatedFile.parse(file), Key(decode(key)))


def _parse_connect(raw: bytes) -> Connect:
    if raw not in _SERVICES:
        raise MalformedMessage(f"{decode(raw[:40])!r} is not a service of git")
    return Connect(decode(raw))


def _timestamp(raw: bytes) -> int:
    # A timestamp translated from one clock to another may be negative: that time has passed.
    return _number(raw, "the timestamp", -MAX_DATA_LENGTH, MAX_DATA_LENGTH)


def _key(raw: bytes) -> Key:
    return Key(decode(raw))


_WITH_PARAMETERS: dict[bytes, Callable[[bytes], Message]] = {
    b"AUTH": _parse_auth,
    b"AUTH-SUCCESS": lambda raw: AuthSuccess(UUID(decode(raw))),
    b"VERSION": lambda raw: Version(_number(raw, "the version", 0, 10**6)),
    b"BYPASS": lambda raw: Bypass(_uuids(raw)),
    b"CHECKPRESENT": lambda raw: CheckPresent(_key(raw)),
    b"LOCKCONTENT": lambda raw: LockContent(_key(raw)),
    b"REMOVE": lambda raw: Remove(_key(raw)),
    b"REMOVE-BEFORE": _parse_remove_before,
    b"TIMESTAMP": lambda raw: Timestamp(_timestamp(raw)),
    b"GET": _parse_get,
    b"PUT": _parse_put,
    b"PUT-FROM": lambda raw: PutFrom(_size(raw, "the offset")),
    b"ALREADY-HAVE-PLUS": lambda raw: AlreadyHavePlus(_uuids(raw)),
    b"DATA": lambda raw: Data(_size(raw, "the length")),
    b"SUCCESS-PLUS": lambda raw: SuccessPlus(_uuids(raw)),
    b"FAILURE-PLUS": lambda raw: FailurePlus(_uuids(raw)),
    b"ERROR": lambda raw: Error(decode(raw)),
    b"CONNECT": _parse_connect,
    b"CONNECTDONE": lambda raw: ConnectDone(_number(raw, "the exit code", -(2**31), 2**31)),
    b"CHANGED": lambda raw: Changed(tuple(word for word in decode(raw).split(" ") if word)),
}

# Messages that take nothing, or whose list may be left out together with the space before it.
_ALONE: dict[bytes, Message] = {
    b"AUTH-FAILURE": AuthFailure(),
    b"UNLOCKCONTENT": UnlockContent(),
    b"GETTIMESTAMP": GetTimestamp(),
    b"ALREADY-HAVE": AlreadyHave(),
    b"DATA-PRESENT": DataPresent(),
    b"VALID": Valid(),
    b"INVALID": Invalid(),
    b"SUCCESS": Success(),
    b"FAILURE": Failure(),
    b"NOTIFYCHANGE": NotifyChange(),
    b"BYPASS": Bypass(frozenset()),
    b"ALREADY-HAVE-PLUS": AlreadyHavePlus(frozenset()),
    b"SUCCESS-PLUS": SuccessPlus(frozenset()),
    b"FAILURE-PLUS": FailurePlus(frozenset()),
    b"CHANGED": Changed(()),
    b"ERROR": Error(""),
}


def parse(line: bytes) -> Message:
    """Reads one line, without its newline.

    Raises MalformedMessage, which says what is wrong but never repeats a token.
    """
    word, space, rest = line.partition(b" ")
    if not space:
        alone = _ALONE.get(word)
        if alone is not None:
            return alone
        if word in _WITH_PARAMETERS:
            raise MalformedMessage(f"{decode(word)} without its parameters")
    elif word in _WITH_PARAMETERS:
        try:
            return _WITH_PARAMETERS[word](rest)
        except ValueError as error:
            raise MalformedMessage(f"{decode(word)}: {error}") from None
    elif word in _ALONE:
        raise MalformedMessage(f"{decode(word)} takes no parameters")
    if word[:4].upper() == b"AUTH":
        # A slip in writing AUTH may have left the token in this word.
        raise MalformedMessage("unknown message that begins like AUTH")
    raise MalformedMessage(f"unknown message {decode(word[:40])!r}")


def describe(message: Message) -> str:
    """The message as its line reads, for logs; a token is never part of it."""
    if isinstance(message, Auth):
        return f"AUTH {message.client or ''} [token]"
    return decode(serialise(message).rstrip(b"\n"))
