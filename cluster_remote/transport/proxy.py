"""Connect through a proxy: SOCKS, such as that of Tor, or HTTP's CONNECT."""

from __future__ import annotations

import base64
from urllib.parse import unquote, urlsplit

import anyio
import h11
from anyio.abc import ByteStream
from python_socks import ProxyError, ProxyTimeoutError, ProxyType
from python_socks.async_.anyio.v2 import Proxy

from cluster_remote.p2p.errors import Unreachable
from cluster_remote.p2p.text import printable

__all__ = ["connect_through"]

# The port of a proxy whose url has none, as in curl and git.
_PORT = 1080
_CHUNK = 4096
# Maximum characters of a proxy's text to quote.
_LONGEST_WORDS = 200
# With socks5h and socks4a, curl has the proxy resolve names, which is what always happens here.
_SOCKS = {
    "socks": ProxyType.SOCKS5,
    "socks5": ProxyType.SOCKS5,
    "socks5h": ProxyType.SOCKS5,
    "socks4": ProxyType.SOCKS4,
    "socks4a": ProxyType.SOCKS4,
}


async def connect_through(proxy: str, host: str, port: int) -> ByteStream:
    """Connect to a port of a host through the proxy at a url, which resolves the name.

    Raises Unreachable, whose text has no login in it.
    """
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        scheme, where, at = parts.scheme, parts.hostname, parts.port or _PORT
    except ValueError:
        where = None
    if not where:
        raise Unreachable("the url of the proxy is not [http:// or socks5h://][user:password@]host[:port]")
    shown = f"{scheme}://{where}:{at}"
    user, password = (None if each is None else unquote(each) for each in (parts.username, parts.password))
    try:
        if scheme == "http":
            return await _by_http(where, at, user, password, host, port)
        if scheme in _SOCKS:
            stream = await Proxy(_SOCKS[scheme], where, at, user, password or "", rdns=True).connect(host, port)
            return stream.anyio_stream
    except ValueError:
        # Its text could have a part of the password.
        reason = "the login, or the name of the host, is not one that it can be sent"
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        reason = "it hung up"
    except h11.ProtocolError:
        reason = "it is not a proxy for HTTP"
    except (ProxyError, ProxyTimeoutError, OSError) as error:
        reason = printable(str(error)[:_LONGEST_WORDS])
    else:
        reason = "it has to be an http:// or socks5h:// proxy"
    raise Unreachable(f"cannot connect to {host}:{port} through the proxy {shown}: {reason}")


async def _by_http(where: str, at: int, user: str | None, password: str | None, host: str, port: int) -> ByteStream:
    """Have a proxy make a tunnel (RFC 9110, 9.3.6). Raises OSError, ValueError, h11's and anyio's errors."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = [("Host", target)]
    if user is not None:
        login = base64.b64encode(f"{user}:{password or ''}".encode()).decode()
        headers.append(("Proxy-Authorization", f"Basic {login}"))
    conversation = h11.Connection(h11.CLIENT)
    asked = conversation.send(h11.Request(method="CONNECT", target=target, headers=headers)) or b""
    asked += conversation.send(h11.EndOfMessage()) or b""
    stream = await anyio.connect_tcp(where, at)
    try:
        await stream.send(asked)
        while not isinstance(event := conversation.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                conversation.receive_data(await stream.receive(_CHUNK))
        if not 200 <= event.status_code < 300:
            raise OSError(f"it answers {event.status_code} {event.reason.decode('latin-1')}".rstrip())
        if conversation.trailing_data[0]:
            raise OSError("it sends something before it is asked")
        return stream
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise
