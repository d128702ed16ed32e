"""Peers on sockets: the real remotedaemon, and every way in which it can be unreachable."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from cluster_remote.p2p.errors import AuthenticationFailed, SessionError, TimedOut, Unreachable, WrongRepository
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Removal, Stored
from cluster_remote.transport.address import BadAddress, Tcp, Unix, parse_address
from cluster_remote.transport.opening import Caller, session_at, transport_to
from cluster_remote.transport.sockets import TcpTransport, UnixTransport
from tests.p2p.memory import Pieces
from tests.support.environment import Environment
from tests.support.peers import Expect, ScriptedPeer, Send, Stall, opening
from tests.support.repositories import Repository, make_repository
from tests.support.sockets import free_port, serve_p2p, tcp_bridge

pytestmark = pytest.mark.anyio

CLIENT = UUID("c11e0000-0000-4000-8000-000000000002")
NODE = UUID("0de00000-0000-4000-8000-000000000003")
TOKEN = "sesame0pen"
KEY = Key("SHA256E-s3--abc")


class Endpoint:
    """A repository behind a unix socket and a TCP port."""

    def __init__(self, environment: Environment, stack: ExitStack) -> None:
        self.repository: Repository = make_repository(environment, environment.directory / "r", "served")
        self.uuid = UUID(self.repository.uuid)
        self.path, self.token = stack.enter_context(serve_p2p(self.repository))
        self.host, self.port = stack.enter_context(tcp_bridge(self.path))

    def url(self, kind: str) -> str:
        return f"unix:{self.path}" if kind == "unix" else f"tcp://{self.host}:{self.port}"


@pytest.fixture(scope="module")
def endpoint(make_environment: Callable[[], Environment]) -> Iterator[Endpoint]:
    with ExitStack() as stack:
        yield Endpoint(make_environment(), stack)


def sockets() -> int:
    """Return how many sockets this process has open."""
    return sum(1 for link in Path("/proc/self/fd").iterdir() if link.is_socket())


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_the_remotedaemon_serves_every_request(endpoint: Endpoint, kind: str) -> None:
    content = f"over {kind}".encode()
    key = Key(f"SHA256-s{len(content)}--{hashlib.sha256(content).hexdigest()}")
    session = session_at(
        parse_address(endpoint.url(kind)), Caller(CLIENT, 20.0), server=endpoint.uuid, token=endpoint.token
    )
    assert await session.open() == endpoint.uuid
    assert session.version == 4
    assert await session.store(key, AssociatedFile("f"), Pieces(content)) == Stored(True)
    assert await session.check_present(key)
    async with session.download(key, AssociatedFile("f"), 5) as download:
        assert b"".join([chunk async for chunk in download.chunks()]) == content[5:]
        assert await download.valid()
    async with session.lock(key) as locked:
        assert locked
    assert await session.remove(key, await session.timestamp() + 100) == Removal(True)
    assert not await session.check_present(key)
    await session.aclose()


async def test_a_closed_session_leaves_no_socket(endpoint: Endpoint) -> None:
    before = sockets()
    session = session_at(parse_address(endpoint.url("unix")), Caller(CLIENT, 20.0), token=endpoint.token)
    await session.open()
    assert sockets() == before + 1
    await session.aclose()
    assert sockets() == before


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_a_wrong_token_is_refused_and_not_repeated(endpoint: Endpoint, kind: str) -> None:
    session = session_at(parse_address(endpoint.url(kind)), Caller(CLIENT, 20.0), token=TOKEN)
    with pytest.raises(AuthenticationFailed, match="did not accept the token") as caught:
        await session.open()
    assert TOKEN not in str(caught.value)


async def test_an_unexpected_repository_is_refused(endpoint: Endpoint) -> None:
    session = session_at(parse_address(endpoint.url("unix")), Caller(CLIENT, 20.0), server=NODE, token=endpoint.token)
    with pytest.raises(WrongRepository, match=str(endpoint.uuid)):
        await session.open()


async def _failure(url: str, timeout: float = 20.0) -> SessionError:
    before = sockets()
    session = session_at(parse_address(url), Caller(CLIENT, timeout), token=TOKEN)
    with pytest.raises(SessionError) as caught:
        await session.check_present(KEY)
    assert sockets() == before
    assert TOKEN not in str(caught.value)
    assert str(caught.value).startswith(f"{url}: checking {KEY}: ")
    return caught.value


async def test_a_missing_socket_is_unreachable(tmp_path: Path) -> None:
    error = await _failure(f"unix:{tmp_path}/nothing")
    assert isinstance(error, Unreachable)
    assert "cannot connect: No such file or directory" in str(error)


async def test_a_stale_socket_is_unreachable(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    assert stat.S_ISSOCK((tmp_path / "s").stat().st_mode)
    error = await _failure(f"unix:{tmp_path}/s")
    assert isinstance(error, Unreachable)
    assert "Connection refused" in str(error)


async def test_a_file_that_is_not_a_socket_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"")
    error = await _failure(f"unix:{tmp_path}/s")
    assert isinstance(error, Unreachable)
    assert "Connection refused" in str(error)


async def test_a_socket_path_that_is_too_long_is_unreachable() -> None:
    error = await _failure(f"unix:/{'long/' * 40}s")
    assert isinstance(error, Unreachable)
    assert "path too long" in str(error)


async def test_a_closed_port_is_unreachable() -> None:
    error = await _failure(f"tcp://127.0.0.1:{free_port()}")
    assert isinstance(error, Unreachable)
    assert "Connection refused" in str(error)


async def test_an_unknown_host_is_unreachable() -> None:
    error = await _failure("tcp://nowhere.invalid:4711")
    assert isinstance(error, Unreachable)
    assert "cannot find the host 'nowhere.invalid'" in str(error)


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "." * 300])
async def test_an_unresolvable_host_name_is_unreachable(host: str) -> None:
    error = await _failure(f"tcp://{host}:4711")
    assert isinstance(error, Unreachable)
    assert "cannot find the host" in str(error)


async def test_every_address_of_a_host_is_tried() -> None:
    # localhost is ::1 as well as 127.0.0.1 on most machines; the peer is only at the latter.
    script = [*opening(str(NODE), token=TOKEN), Expect(f"CHECKPRESENT {KEY}".encode()), Send(b"SUCCESS\n")]
    with ScriptedPeer(script, tcp=True) as peer:
        session = session_at(Tcp("localhost", peer.port), Caller(CLIENT, 20.0), token=TOKEN)
        assert await session.check_present(KEY)
        await session.aclose()


async def test_an_address_that_does_not_answer_leaves_time_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster_remote.transport.network._PER_ADDRESS", 0.2)
    script = [*opening(str(NODE), token=TOKEN), Expect(f"CHECKPRESENT {KEY}".encode()), Send(b"SUCCESS\n")]
    with ScriptedPeer(script, tcp=True) as peer, ExitStack() as stack:
        _deaf("127.0.0.2", peer.port, stack)
        places = ["127.0.0.2", "127.0.0.1"]

        async def several_addresses(*_: object, **__: object) -> list[object]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (place, peer.port)) for place in places]

        monkeypatch.setattr("anyio.getaddrinfo", several_addresses)
        caller = Caller(CLIENT, 20.0, allowed_ips="127.0.0.1 127.0.0.2 127.0.0.3")
        session = session_at(Tcp("two.example.com", peer.port), caller, token=TOKEN)
        assert await session.check_present(KEY)
        await session.aclose()
        places = ["127.0.0.2", "127.0.0.3"]
        with pytest.raises(Unreachable, match=r"127\.0\.0\.2: no answer; 127\.0\.0\.3: Connection refused"):
            await session.check_present(KEY)
        places = ["127.0.0.2"]
        session = session_at(Tcp("one.example.com", peer.port), replace(caller, timeout=0.5), token=TOKEN)
        with pytest.raises(TimedOut, match=r"no connection within 0\.5 seconds"):
            await session.check_present(KEY)


async def test_an_address_that_is_not_allowed_is_not_connected_to() -> None:
    with ScriptedPeer([], tcp=True) as peer:
        caller = Caller(CLIENT, 20.0, allowed_ips="127.0.0.2")
        session = session_at(Tcp("127.0.0.1", peer.port), caller, token=TOKEN)
        with pytest.raises(Unreachable, match=r"allowed-ip-addresses 127\.0\.0\.1"):
            await session.check_present(KEY)
        assert not peer.connections


def _deaf(host: str, port: int, stack: ExitStack) -> None:
    """Listen on a port with a full accept queue: further connections are neither accepted nor refused."""
    listener = stack.enter_context(socket.create_server((host, port), backlog=0))
    for _ in range(3):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())


async def test_a_full_accept_queue_is_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / "s"))
            transport = UnixTransport(os.fsencode(tmp_path / "s"), token=TOKEN, name="busy")
            with anyio.move_on_after(0.2) as scope:
                await transport.connect()
            assert scope.cancelled_caught, "it connected where nobody has room for it"
            async with anyio.create_task_group() as group:
                group.start_soon(_accept_two_after, 0.1, listener)
                with anyio.fail_after(5):
                    connection = await transport.connect()
            assert await connection.receive(1) == b"", "it is connected, and the other side has closed"
            await connection.aclose(0)


async def _accept_two_after(seconds: float, listener: socket.socket) -> None:
    await anyio.sleep(seconds)
    for _ in range(2):
        accepted, _name = await anyio.to_thread.run_sync(listener.accept)
        accepted.close()


async def test_a_full_accept_queue_times_out(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        first.connect(str(tmp_path / "s"))
        error = await _failure(f"unix:{tmp_path}/s", timeout=0.3)
    assert isinstance(error, TimedOut)
    assert "no connection within 0.3 seconds" in str(error)


async def test_cancelling_a_connection_attempt_leaves_no_socket(tmp_path: Path) -> None:
    before = sockets()
    script = [Stall()]
    with ScriptedPeer(script, unix=tmp_path / "s"):
        session = session_at(Unix(str(tmp_path / "s")), Caller(CLIENT, 20.0), token=TOKEN)
        with anyio.move_on_after(0.1) as scope:
            await session.open()
        assert scope.cancelled_caught
    assert sockets() == before


# Tokens


@pytest.mark.parametrize("url", ["unix:/s", "tcp://host:4711"])
@pytest.mark.parametrize("token", [None, ""])
def test_a_socket_needs_a_token_and_says_where_to_put_it(url: str, token: str | None) -> None:
    with pytest.raises(BadAddress, match=f"{url} wants a token: .*CLUSTER_REMOTE_TOKEN"):
        transport_to(parse_address(url), Caller(CLIENT), token=token)


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "tab\t", "nul\0", "slash/es", " ", "esc\x1b"])
def test_a_token_with_impossible_characters_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(BadAddress, match="contains characters that no token has") as caught:
        transport_to(parse_address("unix:/s"), Caller(CLIENT), token=token)
    assert token.strip() not in str(caught.value) or not token.strip()


def test_a_node_behind_the_gateway_is_requested_with_the_token() -> None:
    for url in (f"unix:/s?node={NODE}", f"tcp://host:4711?node={NODE}"):
        transport = transport_to(parse_address(url), Caller(CLIENT), token=TOKEN)
        assert transport.token == f"{TOKEN}/{NODE}"
        assert transport.name == url


def test_an_odd_socket_path_reaches_the_system_as_bytes() -> None:
    transport = transport_to(parse_address("unix:/a b\udcff%20"), Caller(CLIENT), token=TOKEN)
    assert isinstance(transport, UnixTransport)
    assert transport.path == b"/a b\xff%20"


def test_an_ipv6_address_is_passed_without_brackets() -> None:
    transport = transport_to(parse_address("tcp://[::1]:4711"), Caller(CLIENT), token=TOKEN)
    assert isinstance(transport, TcpTransport)
    assert (transport.host, transport.port) == ("::1", 4711)
