"""Parse the `url=` of a remote in all its forms, and refuse dangerous ones.

A url may come from the git-annex branch, and thus from a stranger. So no part of it may become an ssh option, a shell
word or a program name; anything that could be mistaken for one is refused here.

A new kind of address needs one parser, one class and one line in the table `_PARSERS`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import unquote

from cluster_remote.p2p.key import UUID
from cluster_remote.transport import FORMS

__all__ = [
    "Address",
    "BadAddress",
    "Directory",
    "Http",
    "P2pAnnex",
    "Ssh",
    "Tcp",
    "Tls",
    "Tor",
    "Unix",
    "at_node",
    "gateway_of",
    "parse_address",
]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# Text that looks like a scheme or a git remote helper (`ext::sh -c …`) is never taken for a host name.
_SCHEME_WITHOUT_SLASHES = re.compile(r"((?:file|ssh|tcp|tls|https?|annex\+https?)):", re.IGNORECASE)
_PROGRAM = re.compile(r"([A-Za-z0-9+._-]+)::")
_IPV6 = r"\[(?P<ipv6>[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9_.%-]+)?)\]"
_USER_HOST_PORT = re.compile(rf"(?:(?P<user>[^@/]*)@)?(?:{_IPV6}|(?P<host>[^:/@\[\]]*))(?::(?P<port>[0-9]*))?")
_SCP = re.compile(rf"(?:(?P<user>[^@/:]*)@)?(?:{_IPV6}|(?P<host>[^:/@\[\]]+)):(?P<dir>.*)", re.DOTALL)
_SCP_WITH_PASSWORD = re.compile(r"[^/@]*:[^/@]*@[^/@]*:")
_NODE = re.compile(r"(?P<rest>.*?)(?:\?node=(?P<node>[^?&]*))?", re.DOTALL)
_HOST = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")
_NETWORK = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
# The default port of git annex p2phttp (observed with git-annex 10.20261026: also for https).
_P2PHTTP_PORT = 9417
_USER = re.compile(r"[A-Za-z0-9_.+$\\@][A-Za-z0-9_.+$\\@-]*")


class BadAddress(ValueError):
    """A url that cannot be used; the message says why and what to use instead."""


class Address(ABC):
    """Where a peer is."""

    __slots__ = ()

    wants_token = False
    """Whether a peer at this kind of address may require a token."""

    @property
    @abstractmethod
    def local(self) -> bool:
        """Return whether the peer is on this machine, as far as the address tells."""


@dataclass(frozen=True, slots=True)
class Directory(Address):
    """A repository on this machine, reached through git-annex-shell."""

    path: str

    def __str__(self) -> str:
        return self.path

    @property
    def local(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Ssh(Address):
    """A repository on another machine, reached with the system's ssh.

    `path` is relative to the remote home directory unless it begins with a slash.
    """

    host: str
    path: str
    user: str | None = None
    port: int | None = None

    @property
    def destination(self) -> str:
        """Return the destination argument for ssh."""
        return self.host if self.user is None else f"{self.user}@{self.host}"

    def __str__(self) -> str:
        user = "" if self.user is None else f"{self.user}@"
        if self.port is None and not self.path.startswith(("/", "~")):
            host = f"[{self.host}]" if ":" in self.host else self.host
            return f"{user}{host}:{self.path}"
        user = "" if self.user is None else self.user.replace("@", "%40") + "@"
        port = "" if self.port is None else f":{self.port}"
        # Like git: paths relative to the home directory begin with a tilde.
        path = self.path if self.path.startswith(("/", "~")) else f"~/{self.path}"
        path = path.replace("%", "%25")
        return f"ssh://{user}{_bracketed(self.host)}{port}{path if path.startswith('/') else '/' + path}"

    @property
    def local(self) -> bool:
        return _is_this_machine(self.host)


class Socket(Address):
    """A socket that speaks P2P with AUTH. `node` is a repository behind the gateway."""

    __slots__ = ()

    wants_token = True


@dataclass(frozen=True, slots=True)
class Unix(Socket):
    """A unix socket."""

    path: str
    node: UUID | None = None

    def __str__(self) -> str:
        return f"unix:{self.path}{_suffix(self.node)}"

    @property
    def local(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Tcp(Socket):
    """A TCP port without encryption."""

    host: str
    port: int
    node: UUID | None = None

    def __str__(self) -> str:
        return f"tcp://{_bracketed(self.host)}:{self.port}{_suffix(self.node)}"

    @property
    def local(self) -> bool:
        return _is_this_machine(self.host)


@dataclass(frozen=True, slots=True)
class Tls(Socket):
    """A TCP port behind TLS."""

    host: str
    port: int
    node: UUID | None = None

    def __str__(self) -> str:
        return f"tls://{_bracketed(self.host)}:{self.port}{_suffix(self.node)}"

    @property
    def local(self) -> bool:
        return _is_this_machine(self.host)


@dataclass(frozen=True, slots=True)
class Tor(Socket):
    """A Tor onion service, reached through the SOCKS port of Tor on this machine."""

    host: str
    port: int
    node: UUID | None = None

    def __str__(self) -> str:
        return f"tor-annex::{self.host}:{self.port}{_suffix(self.node)}"

    @property
    def local(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class P2pAnnex(Socket):
    """An address on a network of git-annex's generic P2P transport, reached with the program git-annex-p2p-NET."""

    net: str
    path: str
    node: UUID | None = None

    def __str__(self) -> str:
        return f"p2p-annex::{self.net}:{self.path}{_suffix(self.node)}"

    @property
    def local(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Http(Address):
    """A server of git-annex's P2P protocol over HTTP. Its paths begin with `prefix`, before /git-annex/."""

    wants_token = True

    host: str
    port: int
    prefix: str = ""
    tls: bool = False

    @property
    def scheme(self) -> str:
        return "annex+https" if self.tls else "annex+http"

    @property
    def authority(self) -> str:
        """Return host and port as used by git's credential helpers and the Host header."""
        return f"{_bracketed(self.host)}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}/git-annex/"

    @property
    def local(self) -> bool:
        return _is_this_machine(self.host)


def _bracketed(host: str) -> str:
    """Return a host as written in a url: the percent sign before the zone of an IPv6 address is escaped."""
    return f"[{host.replace('%', '%25')}]" if ":" in host else host


def _suffix(node: UUID | None) -> str:
    return "" if node is None else f"?node={node}"


def at_node(address: Address, node: UUID | None) -> Address:
    """Return the address of one repository behind a gateway, or of the gateway itself if `node` is None.

    Directory, ssh and HTTP addresses stay the same.
    """
    return replace(address, node=node) if isinstance(address, Unix | Tcp | Tls | Tor | P2pAnnex) else address


def gateway_of(address: Address) -> Address:
    """Return the address of the gateway itself, without the repository behind it."""
    return at_node(address, None)


def _is_this_machine(host: str) -> bool:
    return host in {"localhost", "::1"} or re.fullmatch(r"127(?:\.[0-9]+){3}", host) is not None


def parse_address(text: str) -> Address:
    """Parse a url. Raises BadAddress."""
    if not text:
        raise BadAddress(f"the url is empty; it can be {FORMS}")
    _check_characters(text, text)
    if text.startswith("/"):
        return Directory(text)
    if scheme := _SCHEME.match(text):
        parser = _PARSERS.get(scheme[1].lower())
        if parser is None:
            raise BadAddress(f"urls of the form {scheme[1].lower()}:// are not supported; the url can be {FORMS}")
        return parser(text, text[scheme.end() :])
    if program := _PROGRAM.match(text):
        network = _NETWORKS.get(program[1].lower())
        if network is not None:
            return network(text, text[program.end() :])
        raise BadAddress(f"urls of the form {program[1]}:: are not supported; the url can be {FORMS}")
    if text[:5].lower() == "unix:":
        return _unix(text, text[5:])
    if scheme := _SCHEME_WITHOUT_SLASHES.match(text):
        raise BadAddress(f"{_shown(text)}: two slashes come after {scheme[1]}: (the url can be {FORMS})")
    return _scp(text)


def _shown(text: str) -> str:
    """Return a refused url for an error, with anything that may be a password or a token redacted."""
    scheme = _SCHEME.match(text)
    start = scheme.end() if scheme else 0
    rest = re.sub(r".*(?:@|%40)", "…@", text[start:], flags=re.DOTALL)
    return repr(text[:start] + re.sub(r"([?&](?!node=)[^=&]*=)[^&]*", r"\1…", rest))


def _check_characters(text: str, part: str) -> None:
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in part):
        raise BadAddress(f"the url {_shown(text)} contains control characters")


def _file(text: str, rest: str) -> Directory:
    host, slash, path = rest.partition("/")
    if host not in {"", "localhost"} or not slash or not path:
        raise BadAddress(f"{_shown(text)}: a file url is file:///dir, with three slashes")
    return Directory(_unquote(text, "/" + path))


def _ssh(text: str, rest: str) -> Ssh:
    authority, _slash, path = rest.partition("/")
    if ":" in unquote(authority.rpartition("@")[0]):
        raise _password()
    parts = _USER_HOST_PORT.fullmatch(authority)
    if parts is None:
        raise BadAddress(f"{_shown(text)}: an ssh url is ssh://[user@]host[:port]/dir")
    path = _unquote(text, path)
    # Like git: ssh://host/~/dir is below the home directory, anything else is absolute.
    path = path if path.startswith("~") else "/" + path
    return _checked_ssh(
        text,
        Ssh(
            host=_host(text, parts, quoted=True),
            path=path,
            user=None if parts["user"] is None else _unquote(text, parts["user"]),
            port=_port(text, parts["port"]) if parts["port"] else None,
        ),
    )


def _scp(text: str) -> Ssh:
    if _SCP_WITH_PASSWORD.match(text):
        raise _password()
    parts = _SCP.fullmatch(text)
    if parts is None:
        raise BadAddress(f"{_shown(text)} is not an address; it can be {FORMS}")
    return _checked_ssh(text, Ssh(host=_host(text, parts, quoted=False), path=parts["dir"], user=parts["user"]))


def _password() -> BadAddress:
    return BadAddress("an ssh url cannot contain a password; let ssh ask for it, or use a key")


def _checked_ssh(text: str, address: Ssh) -> Ssh:
    if address.user is not None and not _USER.fullmatch(address.user):
        raise BadAddress(f"{_shown(text)}: the part before the @ is not a user name")
    if not address.path.strip("/") or address.path.startswith("-"):
        raise BadAddress(f"{_shown(text)} does not say which directory on the host is the repository")
    return address


def _node(text: str, rest: str) -> tuple[str, UUID | None]:
    parts = _NODE.fullmatch(rest)
    assert parts is not None
    if parts["node"] is None:
        return parts["rest"], None
    try:
        return parts["rest"], UUID(parts["node"])
    except ValueError as error:
        raise BadAddress(f"{_shown(text)}: after ?node= comes a repository's UUID: {error}") from None


def _unix(text: str, rest: str) -> Unix:
    path, node = _node(text, rest)
    if not path.startswith("/") or path.startswith("//") or path == "/":
        raise BadAddress(f"{_shown(text)}: a unix socket is unix:/path, absolute")
    return Unix(path, node)


def _tcp(text: str, rest: str) -> Tcp:
    return Tcp(*_host_and_port(text, rest, "a TCP address is tcp://host:port"))


def _tls(text: str, rest: str) -> Tls:
    return Tls(*_host_and_port(text, rest, "an address behind TLS is tls://host:port"))


def _tor(text: str, rest: str) -> Tor:
    host, port, node = _host_and_port(text, rest, "an onion service is tor-annex::NAME.onion:port")
    if not host.endswith(".onion"):
        raise BadAddress(f"{_shown(text)}: the name of an onion service ends in .onion")
    return Tor(host, port, node)


def _p2p_annex(text: str, rest: str) -> P2pAnnex:
    net, colon, path = rest.partition(":")
    path, node = _node(text, path)
    # The name becomes part of a program name, and the address an argument of that program.
    if not _NETWORK.fullmatch(net) or not colon or not path or path.startswith("-"):
        raise BadAddress(f"{_shown(text)}: an address of a P2P network is p2p-annex::NET:ADDRESS")
    return P2pAnnex(net, path, node)


def _http(text: str, rest: str) -> Http:
    tls = text[: len("annex+https")].lower() == "annex+https"
    authority, slash, path = rest.partition("/")
    _no_token(authority)
    if not re.search(r":[0-9]*$", authority) or authority.endswith("]"):
        authority += f":{_P2PHTTP_PORT}"
    host, port, _ = _host_and_port(text, authority, "a server over HTTP is annex+https://host[:port]/git-annex/")
    prefix = f"{slash}{path}".rstrip("/").removesuffix("/git-annex")
    if not re.fullmatch(r"(?:/[A-Za-z0-9._~%+-]+)*", prefix):
        raise BadAddress(f"{_shown(text)}: the path of a server over HTTP ends in /git-annex/, and has no ? or #")
    return Http(host, port, prefix, tls)


def _host_and_port(text: str, rest: str, form: str) -> tuple[str, int, UUID | None]:
    authority, node = _node(text, rest)
    _no_token(authority)
    parts = _USER_HOST_PORT.fullmatch(authority.removesuffix("/"))
    if parts is None or not parts["port"]:
        raise BadAddress(f"{_shown(text)}: {form}")
    return _host(text, parts, quoted=True), _port(text, parts["port"]), node


def _no_token(authority: str) -> None:
    if "@" in unquote(authority):
        raise BadAddress(
            "a url cannot contain a token, because others can read it; put it into the environment variable "
            "CLUSTER_REMOTE_TOKEN"
        )


def _host(text: str, parts: re.Match[str], *, quoted: bool) -> str:
    """Return the host, which ssh cannot mistake for an option. `quoted`: whether the url is percent-encoded."""
    if parts["ipv6"]:
        return parts["ipv6"].replace("%25", "%") if quoted else parts["ipv6"]
    host = _unquote(text, parts["host"]) if quoted else parts["host"]
    if not _HOST.fullmatch(host):
        raise BadAddress(f"{_shown(text)} does not have a valid host name")
    return host


def _port(text: str, digits: str) -> int:
    port = int(digits) if len(digits) < 6 else 0
    if not 0 < port < 65536:
        raise BadAddress(f"{_shown(text)}: {digits[:20]} is not a port")
    return port


def _unquote(text: str, part: str) -> str:
    part = unquote(part, errors="surrogateescape")
    _check_characters(text, part)
    return part


# By scheme; each parser gets the whole url and the part after the two slashes. parse_address handles the forms without
# a scheme, and unix:/path.
_PARSERS: Mapping[str, Callable[[str, str], Address]] = {
    "file": _file,
    "ssh": _ssh,
    "ssh+git": _ssh,
    "git+ssh": _ssh,
    "unix": _unix,
    "tcp": _tcp,
    "tls": _tls,
    "annex+http": _http,
    "annex+https": _http,
}
# By the prefix before two colons; each parser gets the whole url and the part after the colons.
_NETWORKS: Mapping[str, Callable[[str, str], Address]] = {"tor-annex": _tor, "p2p-annex": _p2p_annex}
