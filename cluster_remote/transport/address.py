"""The `url=` of a remote in all its forms: what it reaches, and what is refused.

A url may come from the git-annex branch, hence from a stranger. So nothing of it ever becomes an option of ssh, a
word of a shell or the name of a program; what could be mistaken for one is refused here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TypeAlias
from urllib.parse import unquote

from cluster_remote.p2p.key import UUID

__all__ = ["Address", "BadAddress", "Directory", "Ssh", "Tcp", "Unix", "parse_address"]

FORMS = "/dir, file:///dir, ssh://[user@]host[:port]/dir, [user@]host:dir, unix:/path, tcp://host:port"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?!/?/?$)")
_USER_HOST_PORT = re.compile(
    r"(?:(?P<user>[^@/]*)@)?(?:\[(?P<ipv6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^:/@\[\]]*))(?::(?P<port>[0-9]*))?"
)
_SCP = re.compile(
    r"(?:(?P<user>[^@/:]*)@)?(?:\[(?P<ipv6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^:/@\[\]]+)):(?P<dir>.*)", re.DOTALL
)
_NODE = re.compile(r"(?P<rest>.*?)(?:\?node=(?P<node>[^?&]*))?", re.DOTALL)
_HOST = re.compile(r"[A-Za-z0-9_.:%-]+")
_USER = re.compile(r"[A-Za-z0-9_.+$\\@-]+")


class BadAddress(ValueError):
    """A url that cannot be used; says why and what would do."""


@dataclass(frozen=True, slots=True)
class Directory:
    """A repository on this machine, by git-annex-shell."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class Ssh:
    """A repository on another machine, by the system's ssh. `path` is relative to the home directory there,
    unless it begins with a slash."""

    host: str
    path: str
    user: str | None = None
    port: int | None = None

    @property
    def destination(self) -> str:
        """What ssh takes as its destination."""
        return self.host if self.user is None else f"{self.user}@{self.host}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = "" if self.user is None else f"{self.user}@"
        port = "" if self.port is None else f":{self.port}"
        return f"ssh://{user}{host}{port}{self.path if self.path.startswith('/') else '/' + self.path}"


@dataclass(frozen=True, slots=True)
class Unix:
    """A unix socket that speaks P2P with AUTH. `node` is a repository behind the gateway."""

    path: str
    node: UUID | None = None

    def __str__(self) -> str:
        return f"unix:{self.path}{_suffix(self.node)}"


@dataclass(frozen=True, slots=True)
class Tcp:
    """A TCP port that speaks P2P with AUTH, in the clear. `node` is a repository behind the gateway."""

    host: str
    port: int
    node: UUID | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}{_suffix(self.node)}"


Address: TypeAlias = Directory | Ssh | Unix | Tcp


def _suffix(node: UUID | None) -> str:
    return "" if node is None else f"?node={node}"


def wants_token(address: Address) -> bool:
    """Whether a peer at this address asks for a token."""
    return isinstance(address, Unix | Tcp)


def at_node(address: Address, node: UUID) -> Address:
    """The same gateway, for one repository behind it. By directory and ssh the address stays as it is."""
    return replace(address, node=node) if isinstance(address, Unix | Tcp) else address


def is_local(address: Address) -> bool:
    """Whether the peer is on this machine, as far as the address tells."""
    match address:
        case Directory() | Unix():
            return True
        case Ssh(host=host) | Tcp(host=host):
            return host in {"localhost", "::1"} or host.startswith("127.")


def parse_address(text: str) -> Address:
    """Reads a url. Raises BadAddress."""
    if not text:
        raise BadAddress(f"the url is empty; it can be {FORMS}")
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise BadAddress(f"the url {text!r} has control characters in it")
    if text.startswith("/"):
        return Directory(text)
    scheme = _SCHEME.match(text)
    if scheme and (text[scheme.end() :].startswith("//") or scheme[1].lower() == "unix"):
        rest = text[scheme.end() :]
        match scheme[1].lower():
            case "file":
                return _file(text, rest)
            case "ssh" | "ssh+git" | "git+ssh":
                return _ssh(text, rest[2:])
            case "unix":
                return _unix(text, rest)
            case "tcp":
                return _tcp(text, rest[2:])
            case other:
                raise BadAddress(f"urls of the form {other}: are not supported; the url can be {FORMS}")
    if text.startswith(("p2p-annex::", "tor-annex::")):
        raise BadAddress(f"urls of the form {text.partition('::')[0]}:: are not supported; the url can be {FORMS}")
    return _scp(text)


def _file(text: str, rest: str) -> Directory:
    host, slash, path = rest[2:].partition("/")
    if host not in {"", "localhost"} or not slash or not path:
        raise BadAddress(f"{text!r}: a file url is file:///dir, with three slashes")
    return Directory(_unquote(text, "/" + path))


def _ssh(text: str, rest: str) -> Ssh:
    authority, _slash, path = rest.partition("/")
    parts = _USER_HOST_PORT.fullmatch(authority)
    if parts is None:
        raise BadAddress(f"{text!r}: an ssh url is ssh://[user@]host[:port]/dir")
    path = _unquote(text, path)
    # As git reads it: ssh://host/~/dir is below the home directory, anything else begins at the root.
    path = path if path.startswith("~") else "/" + path
    return _checked_ssh(
        text,
        Ssh(
            host=parts["ipv6"] or _unquote(text, parts["host"]),
            path=path,
            user=None if parts["user"] is None else _unquote(text, parts["user"]),
            port=_port(text, parts["port"]) if parts["port"] else None,
        ),
    )


def _scp(text: str) -> Ssh:
    parts = _SCP.fullmatch(text)
    if parts is None:
        raise BadAddress(f"{text!r} is not an address; it can be {FORMS}")
    return _checked_ssh(text, Ssh(host=parts["ipv6"] or parts["host"], path=parts["dir"], user=parts["user"]))


def _checked_ssh(text: str, address: Ssh) -> Ssh:
    if address.user is not None and ":" in address.user:
        raise BadAddress("a password cannot stand in an ssh url; let ssh ask for it, or use a key")
    if address.host.startswith("-") or not _HOST.fullmatch(address.host):
        raise BadAddress(f"{text!r}: {address.host!r} is not the name of a host")
    if address.user is not None and (address.user.startswith("-") or not _USER.fullmatch(address.user)):
        raise BadAddress(f"{text!r}: {address.user!r} is not the name of a user")
    if address.path in {"", "/"} or address.path.startswith("-"):
        raise BadAddress(f"{text!r} does not say which directory on the host is the repository")
    return address


def _node(text: str, rest: str) -> tuple[str, UUID | None]:
    parts = _NODE.fullmatch(rest)
    assert parts is not None
    if parts["node"] is None:
        return parts["rest"], None
    try:
        return parts["rest"], UUID.parse(parts["node"])
    except ValueError as error:
        raise BadAddress(f"{text!r}: after ?node= comes a repository's UUID: {error}") from None


def _unix(text: str, rest: str) -> Unix:
    path, node = _node(text, rest)
    path = re.sub(r"^//(?=/)", "", path)
    if not path.startswith("/") or path.startswith("//") or path == "/":
        raise BadAddress(f"{text!r}: a unix socket is unix:/path, absolute")
    return Unix(path, node)


def _tcp(text: str, rest: str) -> Tcp:
    authority, node = _node(text, rest)
    parts = _USER_HOST_PORT.fullmatch(authority.removesuffix("/"))
    if parts is not None and parts["user"] is not None:
        raise BadAddress(
            "a token cannot stand in a url, which others can read; put it into the environment variable "
            "CLUSTER_REMOTE_TOKEN"
        )
    if parts is None or not parts["port"] or not (parts["ipv6"] or parts["host"]):
        raise BadAddress(f"{text!r}: a TCP address is tcp://host:port")
    host = parts["ipv6"] or parts["host"]
    if not _HOST.fullmatch(host):
        raise BadAddress(f"{text!r}: {host!r} is not the name of a host")
    return Tcp(host, _port(text, parts["port"]), node)


def _port(text: str, digits: str) -> int:
    port = int(digits) if len(digits) < 6 else 0
    if not 0 < port < 65536:
        raise BadAddress(f"{text!r}: {digits[:20]} is not a port")
    return port


def _unquote(text: str, part: str) -> str:
    part = unquote(part, errors="surrogateescape")
    if any(ord(c) < 32 or ord(c) == 127 for c in part):
        raise BadAddress(f"the url {text!r} has control characters in it")
    return part
