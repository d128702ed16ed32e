"""What a client over HTTP can do to the gateway, and to its other clients."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from cluster_remote.gateway.gateway import Limits
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.server import Mode
from tests.gateway.test_gateway import CLIENT, say
from tests.security.test_clients import Endpoint, gateway, greeting, off
from tests.support.repositories import Cluster

pytestmark = pytest.mark.anyio
MIB = 1024 * 1024


@dataclass
class Raw:
    """A connection on which anything can be said; `status` and `body` are of the last answer."""

    socket: socket.socket
    status: int = 0
    body: bytes = b""

    def begin(self, method: str, path: str, token: str | None = None, **headers: object) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if token is not None:
            lines.append("Authorization: Basic " + base64.b64encode(f"any:{token}".encode()).decode())
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def answer(self) -> int:
        """Read an answer; 0 if the connection ended instead."""
        file = self.socket.makefile("rb")
        try:
            words = file.readline().split()
            self.status = int(words[1]) if len(words) > 1 else 0
            headers = {}
            while line := file.readline().decode().strip():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            self.body = b""
            if "content-length" in headers:
                self.body = file.read(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                chunks = []
                while size := int(file.readline(), 16):
                    chunks.append(file.read(size))
                    file.readline()
                file.readline()
                self.body = b"".join(chunks)
        except ConnectionError:
            self.status = 0
        return self.status

    def ask(self, method: str, path: str, token: str | None = None, **headers: object) -> int:
        self.begin(method, path, token, **headers)
        return self.answer()


def api(uuid: str, endpoint: str) -> str:
    return f"/git-annex/{uuid}/v4/{endpoint}{'&' if '?' in endpoint else '?'}clientuuid={CLIENT}"


def connected(endpoint: Endpoint) -> Raw:
    client = socket.create_connection(("127.0.0.1", endpoint.web), 20)
    client.settimeout(20)
    return Raw(client)


async def told(function: Callable[..., int], *arguments: object, **named: object) -> int:
    return await anyio.to_thread.run_sync(lambda: function(*arguments, **named))


def all_said(client: Raw) -> str:
    heard = b""
    try:
        while more := client.socket.recv(MIB):
            heard += more
    except (TimeoutError, ConnectionError):
        pass
    return heard.decode("latin-1")


def hung_up(client: Raw) -> str:
    """Read to the end of the connection; whether it came within the socket's timeout."""
    try:
        while client.socket.recv(MIB):
            pass
    except ConnectionError:
        return "yes"
    except TimeoutError:
        return "no"
    return "yes"


def sent_all(client: Raw, data: bytes) -> str:
    client.socket.sendall(data)
    return "sent"


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    with anyio.fail_after(seconds):
        while not holds():
            await anyio.sleep(0.02)


# Places


@pytest.mark.slow
async def test_connections_over_http_count_with_those_over_sockets(shared: Cluster, tmp_path: Path) -> None:
    path = api(shared.uuid, "checkpresent?key=WORM-s1--x")
    async with gateway(shared, tmp_path, Limits(clients=8, slot_wait=0.5)) as endpoint:
        greedy, second = (endpoint.tokens.create(Mode.READ_ONLY)[1] for _ in range(2))
        with ExitStack() as stack:
            for _ in range(6):
                assert (await greeting(stack.enter_context(endpoint.connect(greedy)))).startswith("AUTH-SUCCESS")
            # No more for the same token; what it has is not idle for long enough.
            client = connected(endpoint)
            stack.enter_context(client.socket)
            begun = time.monotonic()
            assert await told(client.ask, "GET", "/config", greedy) == 503
            assert 0.5 < time.monotonic() - begun < 10
            for _ in range(3):
                client = connected(endpoint)
                stack.enter_context(client.socket)
                assert await told(client.ask, "POST", path, second) == 200
        assert sum("gave way to another client" in line for line in endpoint.log) == 1


async def test_idle_connections_give_way_to_others_of_the_same_token(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(clients=4)) as endpoint:
        token = endpoint.tokens.create(Mode.READ_ONLY)[1]
        with ExitStack() as stack:
            clients = [connected(endpoint) for _ in range(9)]
            for client in clients:
                stack.enter_context(client.socket)
                assert await told(client.ask, "GET", "/config", token) == 200
            assert await off(hung_up, clients[0]) == "yes"


async def test_a_token_holder_that_waits_for_a_place_does_not_give_way_to_strangers(
    shared: Cluster, tmp_path: Path
) -> None:
    node = shared.nodes[0]
    key = node.add("waiting", os.urandom(32 * MIB))
    async with gateway(shared, tmp_path, Limits(clients=2, strangers=4)) as endpoint:
        token = endpoint.tokens.create(Mode.READ_ONLY)[1]
        with ExitStack() as stack:

            def come() -> Raw:
                client = connected(endpoint)
                stack.enter_context(client.socket)
                return client

            busy = [come() for _ in range(2)]
            for client in busy:
                client.begin("GET", api(node.uuid, f"key/{key}"), token)
            await anyio.sleep(1)
            waiting = [come() for _ in range(2)]
            for client in waiting:
                client.begin("GET", "/config", token)
            await anyio.sleep(0.5)
            strangers = [come() for _ in range(12)]
            assert await off(hung_up, strangers[0]) == "yes"
            for client in busy:
                assert await told(client.answer) == 200
            for client in waiting:
                assert await told(client.answer) == 200


async def test_clients_without_a_token_are_counted_by_address_and_leave_places(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(clients=4, slot_wait=1), public_read=True) as endpoint:
        token = endpoint.tokens.create(Mode.READ_ONLY)[1]
        key = shared.nodes[0].add("large", os.urandom(32 * MIB))
        with ExitStack() as stack:
            readers = [connected(endpoint) for _ in range(2)]
            for reader in readers:
                stack.enter_context(reader.socket)
                reader.begin("GET", api(shared.nodes[0].uuid, f"key/{key}"))
            await anyio.sleep(1)
            late = connected(endpoint)
            stack.enter_context(late.socket)
            assert await told(late.ask, "GET", "/config") == 503
            for _ in range(2):
                client = connected(endpoint)
                stack.enter_context(client.socket)
                assert await told(client.ask, "GET", "/config", token) == 200


async def test_one_connection_is_counted_for_whose_request_it_carries(shared: Cluster, tmp_path: Path) -> None:
    """As behind a reverse proxy."""
    async with gateway(shared, tmp_path, Limits(clients=8)) as endpoint:
        tokens = [endpoint.tokens.create(Mode.READ_ONLY) for _ in range(2)]
        client = connected(endpoint)
        with client.socket:
            for _, text in (*tokens, tokens[0]):
                assert await told(client.ask, "GET", "/config", text) == 200
            endpoint.tokens.revoke(tokens[1][0].id)
            await anyio.sleep(1.5)
            assert await told(client.ask, "GET", "/config", tokens[0][1]) == 200
            endpoint.tokens.revoke(tokens[0][0].id)
            assert await off(hung_up, client) == "yes"


# Revocation


@pytest.mark.slow
async def test_revoking_a_token_ends_its_requests_under_way_and_no_others(shared: Cluster, tmp_path: Path) -> None:
    node = shared.nodes[0]
    key = node.add("revoked", os.urandom(32 * MIB))
    upload = f"put?key=WORM-s{32 * MIB}--upload"
    async with gateway(shared, tmp_path, Limits()) as endpoint:
        (token, text), (_, other) = (endpoint.tokens.create(Mode.READ_WRITE) for _ in range(2))
        with ExitStack() as stack:

            def begun(whose: str, method: str, path: str, **headers: object) -> Raw:
                client = connected(endpoint)
                stack.enter_context(client.socket)
                client.begin(method, path, whose, **headers)
                return client

            kept = begun(text, "POST", api(node.uuid, f"lockcontent?key={key}"))
            assert await told(kept.answer) == 200
            lock = json.loads(kept.body)["lockid"]
            clients: dict[str, list[Raw]] = {}
            for whose in (text, other):
                sent = {"X_git_annex_data_length": 32 * MIB, "Content_Length": 32 * MIB}
                clients[whose] = [
                    begun(whose, "GET", api(node.uuid, f"key/{key}")),
                    begun(whose, "POST", api(shared.uuid, upload + whose[:4]), **sent),
                    begun(whose, "POST", api(node.uuid, f"keeplocked?lockid={lock}"), Transfer_Encoding="chunked"),
                    begun(whose, "POST", "/git-receive-pack", Transfer_Encoding="chunked"),
                ]
                clients[whose][1].socket.sendall(bytes(MIB))
                clients[whose][2].socket.sendall(b'11\r\n{"unlock":false}\n\r\n')
                clients[whose][3].socket.sendall(b"4\r\n0000\r\n")
            await anyio.sleep(1)
            endpoint.tokens.revoke(token.id)
            began = time.monotonic()
            for client in clients[text]:
                assert await off(hung_up, client) == "yes"
            assert time.monotonic() - began < 3
            assert sum("its token was revoked" in line for line in endpoint.log) >= 4
            # The content stays locked for who may have relied on it; the others go on.
            remover = connected(endpoint)
            stack.enter_context(remover.socket)
            assert await told(remover.ask, "POST", api(node.uuid, f"remove?key={key}"), other) == 200
            assert json.loads(remover.body)["removed"] is False
            download, uploading, keeping, _ = clients[other]
            assert await told(download.answer) == 200
            assert len(download.body) == 32 * MIB
            await off(sent_all, uploading, bytes(31 * MIB))
            assert await told(uploading.answer) == 200
            assert json.loads(uploading.body)["stored"] is True
            keeping.socket.sendall(b'10\r\n{"unlock":true}\n\r\n0\r\n\r\n')
            assert await told(keeping.answer) == 200
            assert await told(remover.ask, "POST", api(node.uuid, f"remove?key={key}"), other) == 200
            assert json.loads(remover.body)["removed"] is True


async def test_locks_that_are_left_behind_are_limited_for_each_token(shared: Cluster, tmp_path: Path) -> None:
    node = shared.nodes[0]
    keys = [node.add(f"lock{number}", f"lock{number}".encode()) for number in range(4)]
    async with gateway(shared, tmp_path, Limits(orphaned_locks=3, lock_retention=1.5)) as endpoint:
        greedy, other = (endpoint.tokens.create(Mode.READ_WRITE)[1] for _ in range(2))
        client = connected(endpoint)
        with client.socket:

            async def locked(key: str, token: str) -> bool:
                assert await told(client.ask, "POST", api(node.uuid, f"lockcontent?key={key}"), token) == 200
                return json.loads(client.body)["locked"] is True

            assert [await locked(key, greedy) for key in keys] == [True, True, True, False]
            assert await locked(keys[3], other)
            await anyio.sleep(2)
            assert await locked(keys[3], greedy)


# Requests that do not end


async def test_a_body_that_nobody_reads_holds_nothing_for_ever(shared: Cluster, tmp_path: Path) -> None:
    before = descriptors()
    async with gateway(shared, tmp_path, Limits()) as endpoint:
        with ExitStack() as stack:
            for _ in range(10):
                client = connected(endpoint)
                stack.enter_context(client.socket)
                client.begin(
                    "POST",
                    api(shared.uuid, "put?key=WORM-s1--x"),
                    X_git_annex_data_length=1,
                    Content_Length=100 * MIB,
                )
                try:
                    await off(sent_all, client, bytes(4 * MIB))
                except ConnectionError:
                    continue
                assert await told(client.answer) == 401
            # Also those whose clients stay.
            await until(lambda: sum("without a token" in line for line in endpoint.log) >= 10)
        await until(lambda: descriptors() < before + 15)


async def test_a_client_that_makes_no_request_is_disconnected(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(to_authenticate=0.5)) as endpoint:
        for said in (b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"\x16\x03\x01"):
            client = connected(endpoint)
            with client.socket:
                client.socket.sendall(said)
                assert await off(hung_up, client) == "yes"


async def test_a_slow_head_gets_no_more_time_by_going_on(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(to_authenticate=0.5)) as endpoint:
        client = connected(endpoint)
        with client.socket:
            client.socket.sendall(b"GET / HTTP/1.1\r\n")

            async def drip() -> None:
                while True:
                    client.socket.sendall(b"X-Slow: 1\r\n")
                    await anyio.sleep(0.1)

            with anyio.fail_after(10):
                with pytest.raises(ConnectionError):
                    await drip()


async def test_a_client_that_takes_or_sends_nothing_is_given_up(shared: Cluster, tmp_path: Path) -> None:
    key = shared.nodes[0].add("stalled", os.urandom(32 * MIB))
    async with gateway(shared, tmp_path, Limits(), timeout=1.0) as endpoint:
        token = endpoint.tokens.create(Mode.READ_WRITE)[1]
        reader, writer = connected(endpoint), connected(endpoint)
        with reader.socket, writer.socket:
            reader.begin("GET", api(shared.nodes[0].uuid, f"key/{key}"), token)
            sent = {"X_git_annex_data_length": MIB, "Content_Length": MIB}
            writer.begin("POST", api(shared.uuid, f"put?key=WORM-s{MIB}--stalled"), token, **sent)
            writer.socket.sendall(bytes(1000))
            assert await told(writer.answer) == 200
            assert json.loads(writer.body)["stored"] is False
            await until(lambda: any("took nothing for 1 seconds" in line for line in endpoint.log))


async def test_a_token_s_scope_over_http_means_what_it_says(shared: Cluster, tmp_path: Path) -> None:
    node, other = (UUID(each.uuid) for each in shared.nodes[:2])
    own = shared.gateway.uuid
    async with gateway(shared, tmp_path, Limits()) as endpoint:
        plain = endpoint.tokens.create(Mode.READ_WRITE)[1]
        narrow = endpoint.tokens.create(Mode.READ_WRITE, only=node, git=False)[1]
        client = connected(endpoint)
        with client.socket:
            for token, uuid, status in (
                (plain, node.text, 200),
                (plain, own, 404),
                (narrow, node.text, 200),
                (narrow, other.text, 404),
                (narrow, shared.uuid, 404),
            ):
                path = api(uuid, "checkpresent?key=WORM-s1--x")
                assert await told(client.ask, "POST", path, token, Content_Length=0) == status, (token == plain, uuid)
            refs = "/info/refs?service=git-upload-pack"
            assert await told(client.ask, "GET", refs, narrow) == 403
            assert await told(client.ask, "GET", refs, plain) == 200


@pytest.mark.parametrize(("own", "status"), [(False, 404), (True, 200)])
async def test_anybody_reads_the_gateways_own_repository_only_when_asked_for(
    shared: Cluster, tmp_path: Path, own: bool, status: int
) -> None:
    async with gateway(shared, tmp_path, Limits(), public_read=True, public_own=own) as endpoint:
        client = connected(endpoint)
        with client.socket:
            for uuid, expected in ((shared.gateway.uuid, status), (shared.nodes[0].uuid, 200)):
                path = api(uuid, "checkpresent?key=WORM-s1--x")
                assert await told(client.ask, "POST", path, Content_Length=0) == expected


async def test_a_token_that_is_revoked_while_its_client_waits_gives_no_access(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(clients=1, slot_wait=20)) as endpoint:
        (_, first), (token, second) = (endpoint.tokens.create(Mode.READ_WRITE) for _ in range(2))
        waiting = connected(endpoint)
        with endpoint.connect(first) as holder, waiting.socket:
            assert (await greeting(holder)).startswith("AUTH-SUCCESS")
            say(holder, "LOCKCONTENT WORM-s1--nothing")
            waiting.begin("POST", api(shared.uuid, "putoffset?key=WORM-s1--x"), second, Content_Length=0)
            await anyio.sleep(0.5)
            endpoint.tokens.revoke(token.id)
            await anyio.sleep(1.5)
            holder.close()
            await told(waiting.answer)
            # Its connection does not outlive the next check.
            assert await anyio.to_thread.run_sync(hung_up, waiting) == "yes"


async def test_silent_keepers_of_locks_are_counted_by_their_token(shared: Cluster, tmp_path: Path) -> None:
    """A client may keep a lock without a word for as long as its connection lasts, as with git-annex."""
    node, key = shared.nodes[0].uuid, "WORM-s1--kept-in-silence"
    shared.nodes[0].set_key(key, b"x")
    async with gateway(shared, tmp_path, Limits(clients=4, slot_wait=1)) as endpoint:
        greedy, second = (endpoint.tokens.create(Mode.READ_WRITE)[1] for _ in range(2))
        with ExitStack() as stack:
            statuses = []
            for _ in range(4):
                client = connected(endpoint)
                stack.enter_context(client.socket)
                statuses.append(await told(client.ask, "POST", api(node, f"lockcontent?key={key}"), greedy))
                if statuses[-1] == 200:
                    lockid = json.loads(client.body)["lockid"]
                    path = api(node, f"keeplocked?lockid={lockid}")
                    client.begin("POST", path, greedy, Transfer_Encoding="chunked")
            assert statuses == [200, 200, 200, 503]
            client = connected(endpoint)
            stack.enter_context(client.socket)
            assert await told(client.ask, "POST", api(node, f"checkpresent?key={key}"), second) == 200
            assert await told(client.ask, "POST", api(node, f"remove?key={key}"), second) == 200
            assert json.loads(client.body)["removed"] is False


async def test_guessing_over_http_is_slowed_together_with_sockets(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(after_wrong_token=0.1)) as endpoint:
        for _ in range(3):
            with endpoint.connect("wrong") as socket_client:
                assert await greeting(socket_client) == "AUTH-FAILURE"
        client = connected(endpoint)
        with client.socket:
            began = time.monotonic()
            assert await told(client.ask, "GET", "/config", "wrong") == 401
            assert time.monotonic() - began > 0.7


async def test_a_fetch_that_stalls_is_given_up(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(), timeout=1.0, public_read=True) as endpoint:
        client = connected(endpoint)
        with client.socket:
            kind = "application/x-git-upload-pack-request"
            client.begin("POST", "/git-upload-pack", Transfer_Encoding="chunked", Content_Type=kind)
            client.socket.sendall(b"fffff\r\n0032")
            assert (await told(client.answer), client.body) == (500, b"git gave no answer on the gateway\n")
            assert await off(hung_up, client) == "yes"
        shared.gateway.environment.assert_no_process_left()


async def test_git_sees_no_query_but_the_service_that_was_asked_for(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(), public_read=True) as endpoint:
        for query in ("service=git-receive-pack&service=git-upload-pack", "service=git-upload-pack&service=x&a"):
            client = connected(endpoint)
            with client.socket:
                status = await told(client.ask, "GET", f"/info/refs?{query}")
                assert status == 403 or client.body.startswith(b"001e# service=git-upload-pack\n")


async def test_http_2_is_refused(shared: Cluster, tmp_path: Path) -> None:
    """Many requests on one connection would be many clients in one place."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
    # GET http://localhost/, of which all but the host is in HPACK's static table.
    request = bytes.fromhex("82868441") + b"\x09localhost"
    frame = len(request).to_bytes(3, "big") + bytes.fromhex("010500000001") + request
    upgrade = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    upgrade += b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    async with gateway(shared, tmp_path, Limits(), public_read=True) as endpoint:
        for said in (preface + frame, upgrade + preface):
            client = connected(endpoint)
            client.socket.settimeout(2)
            with client.socket:
                client.socket.sendall(said)
                heard = await off(all_said, client)
                # Headers at most: the page would be longer.
                assert 0 < len(heard) < 500


async def test_a_web_socket_is_refused(shared: Cluster, tmp_path: Path) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": 13}
    async with gateway(shared, tmp_path, Limits(), public_read=True) as endpoint:
        client = connected(endpoint)
        with client.socket:
            assert (
                await told(client.ask, "GET", "/", None, Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAA==", **headers) == 403
            )


async def test_the_log_names_the_client_and_what_it_did(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits()) as endpoint:
        token, text = endpoint.tokens.create(Mode.READ_ONLY)
        client = connected(endpoint)
        with client.socket:
            for _ in range(2):
                assert await told(client.ask, "GET", "/config", text) == 200
        expected = rf"http://127\.0\.0\.1:{endpoint.web}/ #1 \(127\.0\.0\.1:[0-9]+\): token {token.id}: 2 requests \(.*"
        await until(lambda: len(endpoint.log) > 0)
        assert re.fullmatch(expected, endpoint.log[0])
        assert text not in "".join(endpoint.log)


@pytest.mark.slow
async def test_a_second_client_stores_and_gets_within_a_second_whatever_others_do(
    shared: Cluster, tmp_path: Path
) -> None:
    """1,000 connections of one token, each with a request, 1,000 silent strangers, and 100 locks left behind."""
    node = shared.nodes[0]
    keys = [node.add(f"many{number}", f"many{number}".encode()) for number in range(100)]
    async with gateway(shared, tmp_path, Limits(orphaned_locks=100)) as endpoint:
        greedy, second = (endpoint.tokens.create(Mode.READ_WRITE)[1] for _ in range(2))
        locker = connected(endpoint)
        with ExitStack() as stack:
            with locker.socket:
                for key in keys:
                    assert await told(locker.ask, "POST", api(node.uuid, f"lockcontent?key={key}"), greedy) == 200
                    assert json.loads(locker.body)["locked"] is True
            for number in range(2000):
                client = connected(endpoint)
                stack.enter_context(client.socket)
                if number % 2:
                    client.begin("POST", api(shared.uuid, "checkpresent?key=WORM-s1--x"), greedy)
                if number % 50 == 0:
                    await anyio.lowlevel.checkpoint()
            await anyio.sleep(1)
            took = []
            for number in range(5):
                key = f"WORM-s5--second{number}"
                began = time.monotonic()
                client = connected(endpoint)
                with client.socket:
                    client.begin(
                        "POST",
                        api(shared.uuid, f"put?key={key}"),
                        second,
                        X_git_annex_data_length=5,
                        Content_Length=5,
                    )
                    client.socket.sendall(b"hello")
                    assert await told(client.answer) == 200
                    assert json.loads(client.body)["stored"] is True
                    assert await told(client.ask, "GET", api(shared.uuid, f"key/{key}"), second) == 200
                    assert client.body == b"hello"
                took.append(time.monotonic() - began)
            print("seconds to store and get:", " ".join(f"{each:.2f}" for each in took))
            assert max(took) < 1.0, took
        assert len(endpoint.log) < 2000
