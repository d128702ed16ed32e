"""Who gets access to a gateway and to what, and that no client can keep others out."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import pytest

from cluster_remote.annex.repository import Repository as AnnexRepository
from cluster_remote.gateway.backend import Backend
from cluster_remote.gateway.gateway import Gateway as Server
from cluster_remote.gateway.gateway import Limits
from cluster_remote.gateway.listeners import listen
from cluster_remote.gateway.tokens import Tokens
from cluster_remote.p2p.client import StreamSession, Transport
from cluster_remote.p2p.errors import AuthenticationFailed, Unreachable
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.server import Mode
from cluster_remote.p2p.session import Stored
from cluster_remote.p2p.stream import Trace
from cluster_remote.remote.pool import SessionPool
from cluster_remote.transport.address import Tcp, Unix, parse_address
from cluster_remote.transport.network import Network
from cluster_remote.transport.sockets import TcpTransport, UnixTransport
from tests.cluster.real import serving
from tests.gateway.gateways import Gateway
from tests.support.sockets import free_port

pytestmark = pytest.mark.anyio

CLIENT = "c11e0000-0000-4000-8000-000000000002"
NOBODY = "0bad0000-0000-4000-8000-000000000009"
ABSENT = "SHA256E-s5--2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def say(client: socket.socket, *lines: str) -> None:
    client.sendall("".join(line + "\n" for line in lines).encode())


def hear(client: socket.socket) -> str:
    """Return everything the gateway sends until it closes."""
    heard = b""
    while data := client.recv(65536):
        heard += data
    return heard.decode()


def answer(client: socket.socket, *lines: str) -> str:
    """Return the next line; empty if the gateway closes instead."""
    say(client, *lines)
    line = b""
    while not line.endswith(b"\n") and (byte := client.recv(1)):
        line += byte
    return line.decode().rstrip("\n")


# Which repository


def test_a_token_gives_access_to_the_cluster(gateway: Gateway) -> None:
    with gateway.connect() as client:
        text = gateway.tokens[Mode.READ_WRITE]
        assert answer(client, f"AUTH {CLIENT} {text}") == f"AUTH-SUCCESS {gateway.cluster.uuid}"
        assert answer(client, "VERSION 4") == "VERSION 4"
        assert answer(client, f"CHECKPRESENT {ABSENT}") == "FAILURE"


def test_a_token_with_a_uuid_gives_access_to_that_repository(gateway: Gateway) -> None:
    text = gateway.tokens[Mode.READ_WRITE]
    cluster = gateway.cluster
    for uuid in (cluster.uuid, cluster.gateway.uuid, *(node.uuid for node in cluster.nodes)):
        for claim in (f"{text}/{uuid}", text + uuid.replace("-", "")):
            with gateway.connect() as client:
                assert answer(client, f"AUTH {CLIENT} {claim}") == f"AUTH-SUCCESS {uuid}"
                assert answer(client, f"CHECKPRESENT {ABSENT}") == "FAILURE"


def test_an_unknown_repository_is_named_and_the_connection_closed(gateway: Gateway) -> None:
    with gateway.connect() as client:
        say(client, f"AUTH {CLIENT} {gateway.tokens[Mode.READ_WRITE]}/{NOBODY}")
        assert hear(client) == f"ERROR {NOBODY} is not behind this gateway\n"


def test_a_client_needs_no_uuid_of_its_own(gateway: Gateway) -> None:
    with gateway.connect() as client:
        text = gateway.tokens[Mode.READ_ONLY]
        assert answer(client, f"AUTH  {text}") == f"AUTH-SUCCESS {gateway.cluster.uuid}"
        assert answer(client, f"CHECKPRESENT {ABSENT}") == "FAILURE"


@pytest.mark.parametrize("mode", Mode)
def test_a_tokens_mode_applies_to_every_repository_behind_the_gateway(gateway: Gateway, mode: Mode) -> None:
    cluster = gateway.cluster
    for uuid in (cluster.uuid, cluster.gateway.uuid, cluster.nodes[0].uuid):
        with gateway.connect() as client:
            assert answer(client, f"AUTH {CLIENT} {gateway.tokens[mode]}/{uuid}") == f"AUTH-SUCCESS {uuid}"
            put = answer(client, f"PUT  {ABSENT}")
            remove = answer(client, f"REMOVE {ABSENT}") if mode is not Mode.READ_WRITE else ""
        match mode:
            case Mode.READ_WRITE:
                assert put == "PUT-FROM 0"
            case Mode.APPEND_ONLY:
                # After the offer only the content may come.
                assert put == "PUT-FROM 0"
                assert remove == "ERROR protocol error"
            case Mode.READ_ONLY:
                assert put == "ERROR this repository is read-only; write access denied"
                assert remove == put


# Our own client


def transport(gateway: Gateway, address: str, token: str) -> Transport:
    match parse_address(address):
        case Unix(path=path):
            return UnixTransport(os.fsencode(path), token=token, name=address)
        case Tcp(host=host, port=port):
            return TcpTransport(Network(), host, port, token=token, name=address)
        case _:
            raise AssertionError


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_our_own_sessions_store_fetch_and_remove_through_the_gateway(
    gateway: Gateway, kind: str, tmp_path: Path
) -> None:
    content = os.urandom(3_000_000)
    file = tmp_path / "content"
    file.write_bytes(content)
    key = Key(f"WORM-s{len(content)}--through-{kind}")
    session = StreamSession(
        transport(gateway, getattr(gateway, kind), gateway.tokens[Mode.READ_WRITE]),
        client=UUID(CLIENT),
        expected=UUID(gateway.cluster.uuid),
    )
    nodes = frozenset(UUID(node.uuid) for node in gateway.cluster.nodes)
    try:
        stored = await session.store(key, AssociatedFile("f"), FileSource(bytes(file)))
        assert stored == Stored(True, nodes)
        assert gateway.cluster.holders(key.text) == [True, True, True]
        async with session.download(key, AssociatedFile(), 1_000_000) as download:
            fetched = b"".join([bytes(chunk) async for chunk in download.chunks()])
            assert await download.valid()
        assert fetched == content[1_000_000:]
        removal = await session.remove(key)
        assert (removal.removed, removal.uuids) == (True, nodes)
        assert gateway.cluster.holders(key.text) == [False, False, False]
    finally:
        await session.aclose()


async def test_our_own_session_reports_a_wrong_token(gateway: Gateway) -> None:
    session = StreamSession(transport(gateway, gateway.unix, "wrong"), client=UUID(CLIENT))
    with pytest.raises(AuthenticationFailed, match="did not accept the token"):
        await session.open()


# Strangers


@pytest.fixture
async def behind(gateway: Gateway) -> AsyncIterator[Backend]:
    cluster = gateway.cluster
    with cluster.gateway.environment.applied(cluster.gateway.path):
        repository = AnnexRepository(cluster.gateway.path / ".git", cluster.gateway.path, cluster.gateway.path)
        made = Backend(repository, UUID(cluster.gateway.uuid), UUID(cluster.uuid), 20.0)
        try:
            yield made
        finally:
            await made.aclose()


class InProcess:
    """A gateway in this process, for tests that would take too long otherwise."""

    def __init__(self, port: int, log: list[str], token: str) -> None:
        self.port = port
        self.log = log
        self.token = token

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), 20)
        client.settimeout(20)
        return client


@asynccontextmanager
async def in_process(behind: Backend, tmp_path: Path, limits: Limits) -> AsyncIterator[InProcess]:
    tokens = Tokens(tmp_path / "tokens" / "tokens")
    _, token = tokens.create(Mode.READ_WRITE, "in process")
    port = free_port()
    log: list[str] = []
    async with anyio.create_task_group() as tasks:
        server = Server(behind, tokens, 20.0, log.append, limits)
        tasks.start_soon(server.run, listen(Tcp("127.0.0.1", port)), _no_signals())
        yield InProcess(port, log, token)
        tasks.cancel_scope.cancel()


async def _no_signals() -> AsyncIterator[signal.Signals]:
    await anyio.sleep_forever()
    yield signal.SIGTERM


async def off_the_loop(function: Callable[..., str], *arguments: object) -> str:
    return await anyio.to_thread.run_sync(lambda: function(*arguments))


@pytest.mark.parametrize(
    "claim",
    ["wrong", "", "/", "TOKEN/", "TOKEN/node1", "TOKENx", " TOKEN", "TOKEN TOKEN"],
)
async def test_a_wrong_token_is_refused_after_a_delay(behind: Backend, tmp_path: Path, claim: str) -> None:
    delay = 0.3
    async with in_process(behind, tmp_path, Limits(after_wrong_token=delay)) as server:
        with server.connect() as client:
            before = time.monotonic()
            say(client, f"AUTH {CLIENT} {claim.replace('TOKEN', server.token)}")
            assert await off_the_loop(hear, client) == "AUTH-FAILURE\n"
            assert time.monotonic() - before >= delay
    assert "wrong token" in server.log[-1]
    assert server.token not in "".join(server.log)


async def test_a_revoked_token_is_refused_at_once(behind: Backend, tmp_path: Path) -> None:
    async with in_process(behind, tmp_path, Limits(after_wrong_token=0)) as server:
        tokens = Tokens(tmp_path / "tokens" / "tokens")
        with server.connect() as client:
            greeting = await off_the_loop(answer, client, f"AUTH {CLIENT} {server.token}")
            assert greeting == f"AUTH-SUCCESS {behind.cluster}"
        tokens.revoke(tokens.all()[0].id)
        with server.connect() as client:
            assert await off_the_loop(answer, client, f"AUTH {CLIENT} {server.token}") == "AUTH-FAILURE"


async def test_unreadable_tokens_authenticate_nobody_and_reveal_nothing(behind: Backend, tmp_path: Path) -> None:
    async with in_process(behind, tmp_path, Limits()) as server:
        (tmp_path / "tokens" / "tokens").write_text("damaged")
        with server.connect() as client:
            said = await off_the_loop(answer, client, f"AUTH {CLIENT} {server.token}")
    assert said == "ERROR this gateway cannot check tokens; see its log"
    assert "is damaged" in server.log[-1]


STRANGE = {
    "no AUTH": ("VERSION 4\n", "ERROR expected AUTH\n"),
    "HTTP": ("GET / HTTP/1.1\r\n\r\n", "ERROR protocol error: "),
    "no UUID": ("AUTH me token\n", "ERROR protocol error: "),
    "an error": ("ERROR lost\n", "ERROR protocol error\n"),
    "an endless line": ("A" * 200_000, "ERROR protocol error: a line of more than 65536 bytes"),
}


@pytest.mark.parametrize(("said", "told"), STRANGE.values(), ids=STRANGE)
async def test_anything_but_authentication_is_refused_and_disconnected(
    behind: Backend, tmp_path: Path, said: str, told: str
) -> None:
    async with in_process(behind, tmp_path, Limits()) as server:
        with server.connect() as client:
            client.sendall(said.encode())
            assert (await off_the_loop(hear, client)).startswith(told)
    assert "rejected" in server.log[-1]


@pytest.mark.parametrize("said", ["", "AUTH ", "AUTH c11e0000"])
async def test_a_client_that_does_not_authenticate_is_disconnected(behind: Backend, tmp_path: Path, said: str) -> None:
    async with in_process(behind, tmp_path, Limits(to_authenticate=0.3)) as server:
        with server.connect() as client:
            client.sendall(said.encode())
            assert await off_the_loop(hear, client) == ""
    assert "no progress" in server.log[-1]


async def test_unauthenticated_connections_do_not_keep_token_holders_out_for_long(
    behind: Backend, tmp_path: Path
) -> None:
    async with in_process(behind, tmp_path, Limits(strangers=3)) as server:
        strangers = [server.connect() for _ in range(30)]
        with server.connect() as client:
            assert (await off_the_loop(answer, client, f"AUTH {CLIENT} {server.token}")).startswith("AUTH-SUCCESS")
        for stranger in strangers[:-3]:
            with closing(stranger):
                assert await off_the_loop(hear, stranger) == ""
        for stranger in strangers[-3:]:
            stranger.close()
        assert 0 < sum("gave way" in line for line in server.log) <= 10


async def test_one_client_too_many_is_refused_and_the_others_stay(behind: Backend, tmp_path: Path) -> None:
    async with in_process(behind, tmp_path, Limits(clients=2)) as server:
        clients = [server.connect() for _ in range(2)]
        for client in clients:
            assert (await off_the_loop(answer, client, f"AUTH {CLIENT} {server.token}")).startswith("AUTH-SUCCESS")
        with server.connect() as client:
            told = await off_the_loop(answer, client, f"AUTH {CLIENT} {server.token}")
            assert told.startswith("ERROR token ")
            assert told.endswith(" uses 2 of the 2 client slots of this gateway; try again later")
        for client in clients:
            with closing(client):
                assert await off_the_loop(answer, client, "VERSION 3") == "VERSION 3"
        while len(server.log) < 3:
            await anyio.sleep(0.02)
        with server.connect() as client:
            assert (await off_the_loop(answer, client, f"AUTH {CLIENT} {server.token}")).startswith("AUTH-SUCCESS")


@pytest.mark.parametrize("slots", [2, 3])
async def test_more_jobs_than_slots_take_turns_without_an_error(behind: Backend, tmp_path: Path, slots: int) -> None:
    async with in_process(behind, tmp_path, Limits(clients=slots)) as server:
        _, other = Tokens(tmp_path / "tokens" / "tokens").create(Mode.READ_WRITE, "another one")

        async def job(pool: SessionPool) -> None:
            for _ in range(6):
                async with pool.lend(None) as session:
                    assert not await session.check_present(Key(ABSENT))
                await anyio.sleep(0.01)

        pools = []
        async with anyio.create_task_group() as tasks:
            for token in (server.token, other):
                connecting = TcpTransport(Network(), "127.0.0.1", server.port, token=token, name="gateway")

                async def make(trace: Trace, transport: Transport = connecting) -> StreamSession:
                    return StreamSession(transport, client=UUID(CLIENT), trace=trace)

                pools.append(SessionPool(make))
                for _ in range(4):
                    tasks.start_soon(job, pools[-1])
        for pool in pools:
            await pool.aclose()


async def test_each_connection_is_logged_with_who_and_what_and_no_token(behind: Backend, tmp_path: Path) -> None:
    async with in_process(behind, tmp_path, Limits()) as server:
        with server.connect() as client:
            await off_the_loop(answer, client, f"AUTH {CLIENT} {server.token}")
            for line in ("VERSION 4", f"REMOVE-BEFORE -5 {ABSENT}", f"CHECKPRESENT {ABSENT}"):
                await off_the_loop(answer, client, line)
        while not server.log[-1:] or "requests" not in server.log[-1]:
            await anyio.sleep(0.02)
    token = Tokens(tmp_path / "tokens" / "tokens").all()[0]
    whom = f"{CLIENT} with token {token.id} (in process), read-write, to {behind.cluster}"
    assert re.fullmatch(
        re.escape(f"tcp://127.0.0.1:{server.port} #1 (127.0.0.1:PORT): {whom}: 2 requests (").replace("PORT", "[0-9]+")
        + ".*",
        server.log[-1],
    )
    assert server.token not in "".join(server.log)


def test_no_token_is_ever_logged(gateway: Gateway) -> None:
    log = gateway.log.read_text()
    assert "AUTH" not in log
    assert not any(text in log for text in gateway.tokens.values())
    assert "Traceback" not in log


# Nodes by themselves


async def test_bulk_checks_go_to_a_node_directly_and_transfers_through_git_annexs_proxy(
    behind: Backend, gateway: Gateway
) -> None:
    cluster = gateway.cluster
    node, content = cluster.nodes[0], b"asked for directly"
    keys = [Key(f"SHA256-s{len(content)}--{hashlib.sha256(content).hexdigest()}"), Key("SHA256-s1--absent")]
    node.set_key(keys[0].text, content)
    endpoint = await behind.endpoint(UUID(node.uuid), None, Mode.READ_WRITE)
    session = await endpoint.session(frozenset())
    proxies = len(serving(cluster.gateway))
    try:
        assert session.pipelines_checks
        assert await session.check_all(keys) == [True, False]
        assert await session.check_present(keys[0])
        assert len(serving(node)) == 1
        assert len(serving(cluster.gateway)) == proxies
        async with session.download(keys[0], AssociatedFile()) as download:
            assert b"".join([bytes(chunk) async for chunk in download.chunks()]) == content
            assert await download.valid()
            assert len(serving(cluster.gateway)) == proxies + 1
    finally:
        await session.aclose()
    assert not serving(node)


async def test_an_unavailable_node_is_reported_in_bulk_checks_too(behind: Backend, gateway: Gateway) -> None:
    node = gateway.cluster.nodes[0]
    endpoint = await behind.endpoint(UUID(node.uuid), None, Mode.READ_WRITE)
    session = await endpoint.session(frozenset())
    with node.unplugged(), pytest.raises(Unreachable):
        await session.check_all([Key("SHA256-s1--a"), Key("SHA256-s1--b")])
    await session.aclose()
