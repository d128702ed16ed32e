"""Read a request of the P2P protocol over HTTP: its parameters, its login, and the permissions it needs.

Names, formats and error texts are those observed with git-annex 10.20261026. As there, parameters are parsed before
authentication.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from starlette.requests import Request

from cluster_remote.gateway.errors import HttpFailure
from cluster_remote.p2p.key import UUID, AssociatedFile, Key, decode, encode
from cluster_remote.p2p.messages import (
    CheckPresent,
    DataPresent,
    Get,
    GetTimestamp,
    LockContent,
    Message,
    Put,
    Remove,
    RemoveBefore,
    since,
)

__all__ = ["DATA_LENGTH", "REQUEST_OF", "SINCE", "Parameters", "login_of", "path_key", "unbracketed"]

DATA_LENGTH = "X-git-annex-data-length"
# A placeholder in requests without a key.
_ANY_KEY = Key("WORM-s0--")
REQUEST_OF: dict[str, Message] = {
    "checkpresent": CheckPresent(_ANY_KEY),
    "key": Get(0, AssociatedFile(), _ANY_KEY),
    "putoffset": Put(AssociatedFile(), _ANY_KEY),
    "put": Put(AssociatedFile(), _ANY_KEY),
    "remove": Remove(_ANY_KEY),
    "remove-before": RemoveBefore(0, _ANY_KEY),
    "gettimestamp": GetTimestamp(),
    "lockcontent": LockContent(_ANY_KEY),
    "keeplocked": LockContent(_ANY_KEY),
}
"""An equivalent request of the P2P protocol for each endpoint, to find out whether a mode refuses it."""
SINCE = {"putoffset": 1, "remove-before": since(RemoveBefore), "gettimestamp": since(GetTimestamp)}
"""The protocol version that introduced an endpoint; the others have always existed."""


@dataclass(frozen=True)
class Parameters:
    """The parameters of a request; those that its endpoint does not use are ignored.

    `client` is None if the client does not identify itself by UUID. `length` is the length of the body in bytes;
    `is_present` says that the content has reached the nodes some other way.
    """

    key: Key
    client: UUID | None = None
    bypass: frozenset[UUID] = frozenset()
    file: AssociatedFile = field(default_factory=AssociatedFile)
    offset: int = 0
    length: int = 0
    is_present: bool = False
    before: int = 0
    lockid: str = ""

    @classmethod
    def read(cls, request: Request, endpoint: str, version: int, key: Key | None = None) -> Parameters:
        """Parse the parameters; `key` is the one in the path. Raises HttpFailure."""
        query = _query(request)
        if key is None:
            needs_key = endpoint not in ("gettimestamp", "keeplocked")
            key = _key(encode(_parameter(query, "key")), "query parameter key") if needs_key else _ANY_KEY
        if not (query.get("clientuuid", ["none"])[0] if endpoint == "keeplocked" else _parameter(query, "clientuuid")):
            raise _unreadable("query parameter clientuuid", "empty UUID")
        with_file = endpoint in ("put", "key")
        return cls(
            key,
            UUID.if_valid(next(iter(query.get("clientuuid", [])), None)),
            frozenset(found for text in query.get("bypass", []) if (found := UUID.if_valid(text))),
            _file(query) if with_file else AssociatedFile(),
            _number(query, "offset", 0, default=0) if with_file else 0,
            _data_length(request) if endpoint == "put" else 0,
            endpoint == "put" and version >= since(DataPresent) and _flag(query, "data-present"),
            _number(query, "timestamp", -(2**63)) if endpoint == "remove-before" else 0,
            _parameter(query, "lockid") if endpoint == "keeplocked" else "",
        )


def path_key(word: bytes) -> Key:
    """Parse the key in a path, after percent-decoding. Raises HttpFailure."""
    if not word:
        raise HttpFailure(404)
    return _key(word, "key")


def login_of(request: Request) -> tuple[str, str] | None:
    """Return the user and password of a request. Raises HttpFailure for anything but basic authentication."""
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, coded = header.partition(" ")
    try:
        user, colon, password = base64.b64decode(coded.strip(), validate=True).decode().partition(":")
    except ValueError:
        colon = ""
    if scheme.lower() != "basic" or not colon:
        raise HttpFailure(400, "Error parsing header Authorization failed: only Basic is supported")
    return user, password


def unbracketed(word: bytes) -> bytes:
    """Decode a non-UTF-8 value, which arrives as [base64]. Raises ValueError."""
    if len(word) > 1 and word.startswith(b"[") and word.endswith(b"]"):
        return base64.b64decode(word[1:-1], altchars=b"-_", validate=True)
    return word


def _unreadable(what: str, why: str) -> HttpFailure:
    return HttpFailure(400, f"Error parsing {what} failed: {why}")


def _query(request: Request) -> dict[str, list[str]]:
    """Parse the parameters as bytes: a key need not be UTF-8. As for git-annex, a semicolon separates them, too."""
    raw: bytes = request.scope.get("query_string", b"").replace(b";", b"&")
    return parse_qs(raw.decode("latin-1"), keep_blank_values=True, encoding="utf-8", errors="surrogateescape")


def _parameter(query: Mapping[str, list[str]], name: str) -> str:
    if name not in query:
        raise HttpFailure(400, f"Query parameter {name} is required")
    return query[name][0]


def _number(query: Mapping[str, list[str]], name: str, least: int, default: int | None = None) -> int:
    if name not in query and default is not None:
        return default
    text = _parameter(query, name)
    if not re.fullmatch(r"-?[0-9]{1,19}", text, re.ASCII) or int(text) < least:
        raise _unreadable(f"query parameter {name}", f"{name} parse error")
    return int(text)


def _flag(query: Mapping[str, list[str]], name: str) -> bool:
    text = query.get(name, ["false"])[0].lower()
    if text not in ("", "true", "false"):
        raise _unreadable(f"query parameter {name}", "neither true nor false")
    return text != "false"


def _data_length(request: Request) -> int:
    text = request.headers.get(DATA_LENGTH)
    if text is None:
        raise HttpFailure(400, f"Header {DATA_LENGTH} is required")
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise _unreadable(f"header {DATA_LENGTH}", f"{DATA_LENGTH} parse error")
    return int(text)


def _key(word: bytes, what: str) -> Key:
    try:
        return Key(decode(unbracketed(word)))
    except binascii.Error:
        raise _unreadable(what, "unable to base64 decode [] wrapped value") from None
    except ValueError:
        raise _unreadable(what, "key parse error") from None


def _file(query: Mapping[str, list[str]]) -> AssociatedFile:
    what = "query parameter associatedfile"
    try:
        return AssociatedFile(decode(unbracketed(encode(query.get("associatedfile", [""])[0]))))
    except binascii.Error:
        raise _unreadable(what, "unable to base64 decode [] wrapped value") from None
    except ValueError:
        raise _unreadable(what, "not a file name") from None
