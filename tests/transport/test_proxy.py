"""Proxies: which one is used, what it may answer, and that nobody else gets its login."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.p2p.errors import Unreachable
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.transport.address import parse_address
from cluster_remote.transport.network import Network, proxy_for
from cluster_remote.transport.opening import Caller, session_at

pytestmark = pytest.mark.anyio

SECRET = "pässword"
QUOTED = "p%C3%A4ssword"
CLIENT = UUID("11111111-2222-4333-8444-555555555555")
# Instead of a part of an answer: wait for what the client says.
LISTEN = None


@contextmanager
def saying(*parts: bytes | None) -> Iterator[tuple[int, list[bytes]]]:
    """A port where the first client hears these parts; give the port, and what the client says."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                try:
                    for part in (LISTEN, *parts):
                        if part is LISTEN:
                            heard.append(connection.recv(65536))
                        else:
                            connection.sendall(part)
                            # So that each part arrives alone.
                            time.sleep(0.05)
                except OSError:
                    return

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield listener.getsockname()[1], heard
        finally:
            # In case nobody has come.
            socket.create_connection(listener.getsockname()).close()
            thread.join(20)
            assert not thread.is_alive()


async def connected(proxy: str, host: str = "peer.example", port: int = 4) -> None:
    stream = await Network(proxy=proxy).connect(host, port)
    await stream.send(b"to the peer")
    assert await stream.receive() == b"from the peer"
    await stream.aclose()


OK = [b"HTTP/1.0 200 Connection est", b"ablished\r\nProxy-agent: x\r\n", b"\r\n", LISTEN, b"from the peer"]
SOCKS_OK = [b"\x05\x00", LISTEN, b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00", LISTEN, b"from the peer"]


async def test_an_http_proxy_may_answer_in_pieces() -> None:
    with saying(*OK) as (port, heard):
        await connected(f"http://me:{QUOTED}@127.0.0.1:{port}")
    assert heard[0].startswith(b"CONNECT peer.example:4 HTTP/1.1\r\n")
    login = base64.b64encode(f"me:{SECRET}".encode())
    assert b"Proxy-Authorization: Basic " + login + b"\r\n" in heard[0]
    assert heard[1] == b"to the peer"


@pytest.mark.parametrize(
    ("url", "parts", "said"),
    [
        ("127.0.0.1:{}", OK, b"CONNECT peer.example:4 "),
        ("http://127.0.0.1:{}/", OK, b"CONNECT peer.example:4 "),
        ("socks5h://127.0.0.1:{}", SOCKS_OK, b"\x05\x01\x00"),
        ("socks5://127.0.0.1:{}", SOCKS_OK, b"\x05\x01\x00"),
        ("socks://127.0.0.1:{}", SOCKS_OK, b"\x05\x01\x00"),
    ],
)
async def test_urls_of_proxies_are_those_of_curl(url: str, parts: Sequence[bytes | None], said: bytes) -> None:
    with saying(*parts) as (port, heard):
        await connected(url.format(port))
    assert heard[0].startswith(said)


REFUSALS: dict[str, tuple[str, list[bytes | None]]] = {
    "no login": ("http", [b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"]),
    "a refusal with escape sequences": ("http", [b"HTTP/1.1 403 \x1b[31mNo\r\nContent-Length: 0\r\n\r\n"]),
    "too much": ("http", [b"HTTP/1.1 200 OK\r\n\r\nfrom the peer"]),
    "no HTTP": ("http", [b"SSH-2.0-x\r\n"]),
    "an endless head": ("http", [b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000]),
    "nothing": ("http", []),
    "no SOCKS": ("socks5h", [b"\x1b]0;PWNED\x07"]),
    "no way to log in": ("socks5h", [b"\x05\xff"]),
    "half of an answer": ("socks5h", [b"\x05"]),
    "a refusal": ("socks5h", [b"\x05\x00", LISTEN, b"\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00"]),
    "a login that cannot be sent": ("socks5h", [b"\x05\x02"]),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_whatever_a_proxy_answers_the_error_is_one_line_without_its_login(name: str) -> None:
    scheme, parts = REFUSALS[name]
    with saying(*parts) as (port, _), pytest.raises(Unreachable) as caught:
        await connected(f"{scheme}://me:{QUOTED}@127.0.0.1:{port}")
    said = str(caught.value)
    assert f"through the proxy {scheme}://127.0.0.1:{port}: " in said
    assert said.isprintable()
    assert len(said) < 500
    assert SECRET not in said
    assert QUOTED not in said


async def test_a_name_that_no_proxy_can_resolve_is_an_error() -> None:
    with saying(b"\x05\x00") as (port, _), pytest.raises(Unreachable):
        await connected(f"socks5h://127.0.0.1:{port}", "x" * 64)


@pytest.mark.parametrize(
    "url", ["http://me:{}@host:port", "ftp://me:{}@host:1", "https://me:{}@host:1", "http://me:{}@"]
)
async def test_a_url_that_is_none_of_a_proxy_is_refused_without_its_login(url: str) -> None:
    with pytest.raises(Unreachable, match=r"socks5h://") as caught:
        await connected(url.format(QUOTED))
    assert QUOTED not in str(caught.value)


async def test_a_session_over_http_goes_by_the_proxy_of_git_which_sees_no_login_of_the_server() -> None:
    answer = b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"present":true}'
    denied = b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"
    with saying(b"HTTP/1.1 200 OK\r\n\r\n", LISTEN, denied, LISTEN, answer) as (port, heard):
        address = parse_address("annex+http://server.example/git-annex/")
        config = GitConfig({"http.proxy": (f"http://me:proxysecret@127.0.0.1:{port}",)})
        caller = Caller(CLIENT, 5.0, config=config)
        session = session_at(address, caller, server=CLIENT, token="token")
        try:
            assert await session.check_present(Key("WORM-s1--x"))
        finally:
            await session.aclose()
    connect, first, second = heard
    assert connect.startswith(b"CONNECT server.example:9417 ")
    assert b"Proxy-Authorization" in connect
    assert b"Proxy-Authorization" not in first + second
    assert b"\r\nAuthorization" not in connect + first
    assert b"\r\nAuthorization" in second


@pytest.mark.parametrize(
    ("scheme", "variables", "configured", "expected"),
    [
        ("http", {}, None, None),
        ("tcp", {"ALL_PROXY": "socks5h://all"}, None, "socks5h://all"),
        ("tls", {"all_proxy": "socks5h://all"}, None, "socks5h://all"),
        ("tcp", {"HTTPS_PROXY": "http://p"}, None, None),
        ("https", {"HTTPS_PROXY": "http://p", "ALL_PROXY": "socks5h://all"}, None, "http://p"),
        ("http", {"http_proxy": "http://p"}, "http://git", "http://git"),
        ("http", {"http_proxy": "http://p"}, "", None),
        ("tcp", {"ALL_PROXY": "socks5h://all", "NO_PROXY": "other,server.example"}, None, None),
        ("tcp", {"ALL_PROXY": "socks5h://all", "NO_PROXY": ".example"}, None, None),
        ("tcp", {"ALL_PROXY": "socks5h://all", "NO_PROXY": "example.org"}, None, "socks5h://all"),
        ("http", {"no_proxy": "*"}, "http://git", None),
    ],
)
async def test_the_proxy_is_the_one_that_git_takes(
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    variables: dict[str, str],
    configured: str | None,
    expected: str | None,
) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(scheme, "server.example", configured) == expected
