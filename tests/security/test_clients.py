"""What a client of a gateway can do to its contents, and to the other clients."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from cluster_remote.annex.repository import Repository as AnnexRepository
from cluster_remote.gateway.backend import Backend
from cluster_remote.gateway.gateway import Gateway, Limits
from cluster_remote.gateway.listeners import SocketConnection, WebAddress, listen
from cluster_remote.gateway.ratelimit import RateLimitedLog
from cluster_remote.gateway.slots import Connection, OrphanedLocks, Slots
from cluster_remote.gateway.tokens import Token, Tokens
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.server import Mode
from cluster_remote.transport.address import Tcp
from tests.gateway.test_gateway import CLIENT, _no_signals, answer, hear, say
from tests.support.repositories import Cluster
from tests.support.sockets import free_port

pytestmark = pytest.mark.anyio


@dataclass
class Endpoint:
    """A gateway in this process, over TCP and HTTP."""

    port: int
    web: int
    tokens: Tokens
    log: list[str]
    cluster: Cluster

    def connect(self, claim: str | None = None) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), 20)
        client.settimeout(20)
        if claim is not None:
            say(client, f"AUTH {CLIENT} {claim}")
        return client


@asynccontextmanager
async def gateway(
    shared: Cluster,
    directory: Path,
    limits: Limits,
    timeout: float = 20.0,
    *,
    public_read: bool = False,
    public_own: bool = False,
) -> AsyncIterator[Endpoint]:
    with shared.gateway.environment.applied(shared.gateway.path):
        repository = AnnexRepository(shared.gateway.path / ".git", shared.gateway.path, shared.gateway.path)
        backend = Backend(repository, UUID(shared.gateway.uuid), UUID(shared.uuid), timeout)
        endpoint = Endpoint(free_port(), free_port(), Tokens(directory / "tokens" / "tokens"), [], shared)
        endpoint.tokens.create(Mode.READ_ONLY, "makes the directory")
        try:
            async with anyio.create_task_group() as tasks:
                server = Gateway(
                    backend,
                    endpoint.tokens,
                    timeout,
                    endpoint.log.append,
                    limits,
                    public_read=public_read,
                    public_own=public_own,
                )
                listeners = [
                    *listen(Tcp("127.0.0.1", endpoint.port)),
                    *listen(WebAddress(Tcp("127.0.0.1", endpoint.web))),
                ]
                tasks.start_soon(server.run, listeners, _no_signals())
                yield endpoint
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await backend.aclose()


async def off(function: Callable[..., str], *arguments: object) -> str:
    return await anyio.to_thread.run_sync(lambda: function(*arguments))


async def greeting(client: socket.socket) -> str:
    return await off(answer, client)


async def put(client: socket.socket, key: str, content: str) -> str:
    offered = await off(answer, client, f"PUT  {key}")
    if not offered.startswith("PUT-FROM"):
        return offered
    client.sendall(f"DATA {len(content)}\n{content}VALID\n".encode())
    return await off(answer, client)


# What a token allows


async def test_an_append_only_client_replaces_nothing_and_stores_what_is_new(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits()) as endpoint:
        writer, appender = (endpoint.tokens.create(mode)[1] for mode in (Mode.READ_WRITE, Mode.APPEND_ONLY))
        # On one node only: the others would take another content for the same key.
        with endpoint.connect(f"{writer}/{shared.nodes[0].uuid}") as one, endpoint.connect(appender) as other:
            for client in (one, other):
                assert (await greeting(client)).startswith("AUTH-SUCCESS")
                await off(answer, client, "VERSION 4")
            assert (await put(one, "WORM-s5--kept", "hello")).startswith("SUCCESS")
            assert (await put(other, "WORM-s5--kept", "EVIL!")).startswith("ALREADY-HAVE")
            assert (await put(other, "WORM-s3--new", "new")).startswith("SUCCESS")
            assert (await off(answer, other, "REMOVE WORM-s5--kept")).startswith("ERROR")


@pytest.mark.parametrize("mode", Mode)
async def test_content_that_the_client_calls_invalid_is_never_kept(shared: Cluster, tmp_path: Path, mode: Mode) -> None:
    key = f"WORM-s5--invalid-{mode.value}"
    async with gateway(shared, tmp_path, Limits()) as endpoint:
        with endpoint.connect(endpoint.tokens.create(mode)[1]) as client:
            await greeting(client)
            await off(answer, client, "VERSION 4")
            if (await off(answer, client, f"PUT  {key}")).startswith("PUT-FROM"):
                client.sendall(b"DATA 5\nhelloINVALID\n")
                assert not (await off(answer, client)).startswith("SUCCESS")
            assert await off(answer, client, f"CHECKPRESENT {key}") == "FAILURE"
    assert shared.holders(key) == [False, False, False]


@pytest.mark.parametrize("length", ["-1", "4", "6", str(2**63 - 1), str(2**63), "9" * 100, "5 5", "x", ""])
async def test_data_of_a_wrong_length_is_not_kept_and_the_next_client_is_served(
    shared: Cluster, tmp_path: Path, length: str
) -> None:
    key = Key(f"WORM-s5--length{length.replace(' ', '_')}")
    async with gateway(shared, tmp_path, Limits(), timeout=3.0) as served:
        _, claim = served.tokens.create(Mode.READ_WRITE)
        with served.connect(claim) as client:
            await greeting(client)
            await off(answer, client, "VERSION 4")
            assert await off(answer, client, f"PUT  {key}") == "PUT-FROM 0"
            client.sendall(f"DATA {length}\nhelloVALID\n".encode())
            assert not (await off(answer, client)).startswith("SUCCESS")
        with served.connect(claim) as client:
            await greeting(client)
            await off(answer, client, "VERSION 4")
            assert await off(answer, client, f"CHECKPRESENT {key}") == "FAILURE"


@pytest.mark.parametrize("name", ["../../../../evil", "/etc/passwd", "a/../../b", "%2e%2e%2fx", ".."])
async def test_a_key_is_no_path_out_of_the_repositories(shared: Cluster, tmp_path: Path, name: str) -> None:
    top = shared.gateway.path.parent
    before = {path.name for path in top.iterdir()}
    async with gateway(shared, tmp_path, Limits()) as endpoint:
        with endpoint.connect(endpoint.tokens.create(Mode.READ_WRITE)[1]) as client:
            await greeting(client)
            await off(answer, client, "VERSION 4")
            await put(client, f"WORM-s5--{name}", "hello")
    assert {path.name for path in top.iterdir()} == before
    assert all((top / each / ".git").exists() for each in before if (top / each).is_dir() and each == "gateway")


async def test_a_token_s_scope_means_what_it_says(shared: Cluster, tmp_path: Path) -> None:
    node, other = (UUID(each.uuid) for each in shared.nodes[:2])
    async with gateway(shared, tmp_path, Limits()) as endpoint:
        create = endpoint.tokens.create
        plain, narrow = create(Mode.READ_WRITE)[1], create(Mode.READ_WRITE, only=node, git=False)[1]
        wide = create(Mode.READ_WRITE, own=True)[1]
        expected = {
            plain: f"AUTH-SUCCESS {shared.uuid}",
            f"{plain}/{node}": f"AUTH-SUCCESS {node}",
            f"{plain}/{shared.gateway.uuid}": "ERROR this token gives no access to the gateway's own repository",
            narrow: f"AUTH-SUCCESS {node}",
            f"{narrow}/{other}": f"ERROR this token gives access only to {node}",
            f"{narrow}/{shared.uuid}": f"ERROR this token gives access only to {node}",
            f"{wide}/{shared.gateway.uuid}": f"AUTH-SUCCESS {shared.gateway.uuid}",
        }
        for claim, said in expected.items():
            with endpoint.connect(claim) as client:
                assert await greeting(client) == said
        with endpoint.connect(narrow) as client:
            await greeting(client)
            say(client, "CONNECT git-upload-pack")
            assert "ERR this token gives no access to the git repository" in await off(hear, client)


async def test_a_token_that_has_expired_is_a_wrong_one_and_its_connections_end(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(after_wrong_token=0)) as endpoint:
        text = endpoint.tokens.create(Mode.READ_WRITE, expires=int(time.time()) + 2)[1]
        with endpoint.connect(text) as client:
            assert (await greeting(client)).startswith("AUTH-SUCCESS")
            assert await off(hear, client) == ""
        with endpoint.connect(text) as client:
            assert await greeting(client) == "AUTH-FAILURE"


async def test_revoking_a_token_ends_its_connections_and_no_others(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits()) as endpoint:
        (token, text), (_, kept) = endpoint.tokens.create(Mode.READ_WRITE), endpoint.tokens.create(Mode.READ_WRITE)
        with endpoint.connect(text) as client, endpoint.connect(kept) as other:
            await greeting(client)
            await greeting(other)
            endpoint.tokens.revoke(token.id)
            began = time.monotonic()
            assert await off(hear, client) == ""
            assert time.monotonic() - began < 3
            assert await off(answer, other, "VERSION 3") == "VERSION 3"
        assert any("its token was revoked" in line for line in endpoint.log)


# What one client leaves to the others


async def test_one_token_gets_a_share_and_its_idle_connections_give_way(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(clients=8)) as endpoint:
        greedy, second, third = (endpoint.tokens.create(Mode.READ_ONLY)[1] for _ in range(3))
        with ExitStack() as stack:

            async def come(claim: str) -> str:
                return await greeting(stack.enter_context(endpoint.connect(claim)))

            assert [(await come(greedy)).split()[0] for _ in range(8)] == ["AUTH-SUCCESS"] * 6 + ["ERROR"] * 2
            assert [(await come(second)).split()[0] for _ in range(3)] == ["AUTH-SUCCESS"] * 3
            assert (await come(third)).startswith("AUTH-SUCCESS")
            with anyio.fail_after(10):
                while sum("gave way to another client" in line for line in endpoint.log) < 2:
                    await anyio.sleep(0.05)


@pytest.mark.slow
async def test_locks_of_clients_that_are_gone_take_no_place_and_are_limited(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(clients=2, orphaned_locks=3)) as endpoint:
        text = endpoint.tokens.create(Mode.READ_WRITE)[1]
        node = shared.nodes[0].uuid
        keys = [f"WORM-s1--lock{number}" for number in range(4)]
        with endpoint.connect(text) as client:
            await greeting(client)
            await off(answer, client, "VERSION 4")
            for key in keys:
                assert (await put(client, key, "x")).startswith("SUCCESS")
        answers = []
        # The first one again and again holds no more than one.
        for key in [keys[0], keys[0], *keys]:
            with endpoint.connect(f"{text}/{node}") as client:
                assert (await greeting(client)).startswith("AUTH-SUCCESS")
                answers.append((await off(answer, client, f"LOCKCONTENT {key}")).split()[0])
            await anyio.sleep(0.3)
        assert answers == ["SUCCESS"] * 5 + ["ERROR"]
        assert sum("a newer lock holds the same content" in line for line in endpoint.log) == 2
        with endpoint.connect(f"{text}/{node}") as client:
            await greeting(client)
            assert (await off(answer, client, f"REMOVE {keys[0]}")).startswith("FAILURE")


async def test_long_idle_clients_give_way_to_one_with_as_few_connections() -> None:
    def token(number: int) -> Token:
        return Token(f"{number:08}", Mode.READ_ONLY, "", 0, "")

    slots = Slots(2, 2)
    clients = [Connection(str(number), "address") for number in range(4)]
    for number in range(2):
        assert slots.admit(clients[number], token(number)) is None
    assert slots.admit(clients[2], token(2)) is not None
    clients[0].idle_since = time.monotonic() - 3600
    assert slots.admit(clients[2], token(2)) is None
    assert clients[0].ended is not None
    clients[1].idle_since = time.monotonic() - 3600
    # But not to more connections of one that has a slot already.
    assert slots.admit(clients[3], token(2)) is not None


async def test_a_client_whose_request_is_on_its_way_does_not_give_way() -> None:
    ours, theirs = socket.socketpair()
    connection = SocketConnection(ours)
    client = Connection("one", "one", has_unread=connection.has_unread)
    slots = Slots(1, 2)
    assert slots.admit(client, None) is None
    client.idle_since = time.monotonic() - 3600
    theirs.send(b"VERSION 4\n")
    assert slots.admit(Connection("two", "two"), None) is not None
    await connection.receive(100)
    theirs.close()
    assert slots.admit(Connection("two", "two"), None) is None
    assert client.ended is not None
    await connection.aclose(0)
    assert not connection.has_unread()


async def test_a_client_whose_machine_is_dead_is_noticed_within_minutes() -> None:
    (listener,) = listen(WebAddress(Tcp("127.0.0.1", port := free_port())))
    try:
        with socket.create_connection(("127.0.0.1", port)):
            accepted = (await listener.accept_web()).socket
            with accepted:
                idle, between, count = (
                    accepted.getsockopt(socket.IPPROTO_TCP, each)
                    for each in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                )
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert idle + between * count <= 200
    finally:
        listener.close()


def test_locks_that_some_tokens_leave_behind_leave_some_to_the_others() -> None:
    locks = OrphanedLocks(per_token=4, total=8)
    taken = []
    for token in ("one", "two", "three"):
        for number in range(5):
            if locks.refusal(token) is None:
                locks.add(token, number, lambda: None)
                taken.append(token)
    assert taken == ["one"] * 4 + ["two"] * 4 + ["three"] * 2


async def test_guessing_is_slowed_across_connections(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(after_wrong_token=0.1)) as endpoint:
        took = []
        for _ in range(4):
            with endpoint.connect("wrong") as client:
                began = time.monotonic()
                assert await greeting(client) == "AUTH-FAILURE"
                took.append(time.monotonic() - began)
        assert took[3] > 0.8
        assert took[0] < took[3]
        with endpoint.connect(endpoint.tokens.create(Mode.READ_ONLY)[1]) as client:
            assert (await greeting(client)).startswith("AUTH-SUCCESS")


def test_a_flood_does_not_fill_the_log() -> None:
    lines: list[str] = []
    log = RateLimitedLog(lines.append)
    for number in range(1000):
        log.say("strangers", f"stranger {number}")
    log.sum_up()
    assert len(lines) == 11
    assert lines[-1].startswith("990 more strangers")


async def test_one_token_does_not_fill_the_log(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits()) as served:
        token, claim = served.tokens.create(Mode.READ_ONLY)
        for _ in range(150):
            with served.connect(claim) as client:
                await greeting(client)
        await anyio.sleep(1)
        assert 50 <= sum(f"with token {token.id}" in line for line in served.log) <= 101


@pytest.mark.slow
async def test_a_second_client_stores_and_gets_within_a_second_whatever_others_do(
    shared: Cluster, tmp_path: Path
) -> None:
    async with gateway(shared, tmp_path, Limits(orphaned_locks=100)) as endpoint:
        (greedy, second), node = (
            (endpoint.tokens.create(Mode.READ_WRITE)[1] for _ in range(2)),
            shared.nodes[0].uuid,
        )
        with ExitStack() as stack:
            with endpoint.connect(greedy) as client:
                await greeting(client)
                await off(answer, client, "VERSION 4")
                for number in range(100):
                    assert (await put(client, f"WORM-s1--many{number}", "x")).startswith("SUCCESS")
            for number in range(100):
                with endpoint.connect(f"{greedy}/{node}") as client:
                    await greeting(client)
                    assert await off(answer, client, f"LOCKCONTENT WORM-s1--many{number}") == "SUCCESS"
            for number in range(2000):
                stack.enter_context(endpoint.connect(greedy if number % 2 else None))
                if number % 50 == 0:
                    await anyio.lowlevel.checkpoint()
            await anyio.sleep(1)
            took = []
            for number in range(5):
                began = time.monotonic()
                with endpoint.connect(second) as client:
                    assert (await greeting(client)).startswith("AUTH-SUCCESS")
                    await off(answer, client, "VERSION 4")
                    assert (await put(client, f"WORM-s5--second{number}", "hello")).startswith("SUCCESS")
                    assert await off(answer, client, f"GET 0  WORM-s5--second{number}") == "DATA 5"
                took.append(time.monotonic() - began)
            print("seconds to store and get:", " ".join(f"{each:.2f}" for each in took))
            assert sorted(took)[2] < 1.0, took
        assert len(endpoint.log) < 1000
