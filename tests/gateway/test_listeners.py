"""Listening: no other program's socket is taken, no other user can connect, nothing is left behind."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import anyio
import pytest

from cluster_remote.gateway.errors import CannotListen
from cluster_remote.gateway.listeners import Listener, SocketConnection, inherited_listeners, listen, parse_listen
from cluster_remote.transport.address import BadAddress, Tcp, Unix
from tests.support.environment import open_umask
from tests.support.sockets import free_port

pytestmark = pytest.mark.anyio


@contextmanager
def listening(address: Unix | Tcp) -> Iterator[Listener]:
    (listener,) = listen(address)
    try:
        yield listener
    finally:
        listener.close()


async def exchange(listener: Listener, client: socket.socket) -> None:
    """Assert that a client's data arrives, then the answer, then its end."""
    with anyio.fail_after(10):
        connection = await listener.accept()
        client.sendall(b"hello")
        assert await connection.receive(100) == b"hello"
        assert await connection.send_some(memoryview(b"there")) == 5
        assert client.recv(100) == b"there"
        client.close()
        await connection.aclose(5)


@pytest.mark.parametrize("text", ["/srv/annex", "nas:annex", "ssh://nas/annex"])
def test_only_socket_addresses_can_be_listened_on(text: str) -> None:
    with pytest.raises(BadAddress):
        parse_listen(text)


def test_an_address_naming_a_node_cannot_be_listened_on() -> None:
    with pytest.raises(BadAddress, match="for clients"):
        parse_listen("unix:/run/gw?node=0e15e000-0000-4000-8000-000000000003")


async def test_a_unix_socket_is_private_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run" / "gw"
    with open_umask(), listening(Unix(str(path))) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert listener.name == f"unix:{path}"
        assert not listener.in_the_clear
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        await exchange(listener, client)
        assert list(path.parent.iterdir()) == [path]
    assert list(path.parent.iterdir()) == []


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "gw"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with listening(Unix(str(path))), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_live_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "gw"
    with listening(Unix(str(path))), socket.socket(socket.AF_UNIX) as client:
        with pytest.raises(CannotListen, match="already in use"):
            listen(Unix(str(path)))
        client.connect(str(path))
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_a_file_that_is_not_a_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "gw"
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CannotListen, match="something else exists"):
        listen(Unix(str(path)))
    assert list(tmp_path.iterdir()) == [path]


def test_a_socket_that_replaced_ours_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "gw"
    with listening(Unix(str(path))):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.is_socket()


def test_a_socket_path_that_is_too_long_says_by_how_much(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 107)
    with pytest.raises(CannotListen, match=f"shorten it by {len(str(path)) - 107}"):
        listen(Unix(str(path)))
    shorter = Unix(str(path)[:107])
    with listening(shorter):
        pass


def test_gateways_starting_at_once_do_not_take_each_others_socket(tmp_path: Path) -> None:
    path = tmp_path / "gw"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    def attempt(_: int) -> Listener | None:
        try:
            return listen(Unix(str(path)))[0]
        except CannotListen:
            return None

    with ThreadPoolExecutor(8) as pool:
        (winner,) = [listener for listener in pool.map(attempt, range(8)) if listener is not None]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        accepted, _ = winner.socket.accept()
        accepted.close()
    winner.close()


def test_an_unwritable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotListen, match=r"unix:.*/file/gw"):
        listen(Unix(str(tmp_path / "file" / "gw")))


async def test_tcp_on_loopback_needs_no_warning() -> None:
    port = free_port()
    with listening(Tcp("127.0.0.1", port)) as listener:
        assert listener.name == f"tcp://127.0.0.1:{port}"
        assert not listener.in_the_clear
        await exchange(listener, socket.create_connection(("127.0.0.1", port)))


def test_tcp_on_every_address_counts_as_unencrypted() -> None:
    with listening(Tcp("0.0.0.0", free_port())) as listener:
        assert listener.in_the_clear


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=rf"tcp://127.0.0.1:{port}: 127.0.0.1: Address already in use"):
            listen(Tcp("127.0.0.1", port))


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(CannotListen, match=r"no-such-host\.invalid"):
        listen(Tcp("no-such-host.invalid", 1))


def test_a_port_can_be_reused_at_once() -> None:
    port = free_port()
    for _ in range(2):
        with listening(Tcp("127.0.0.1", port)) as listener:
            client = socket.create_connection(("127.0.0.1", port))
            accepted, _ = listener.socket.accept()
            # The side that closes first keeps the port in TIME_WAIT.
            accepted.close()
            client.close()


async def test_a_refusal_arrives_even_if_the_clients_data_was_not_read() -> None:
    with listening(Tcp("127.0.0.1", free_port())) as listener:
        port = listener.socket.getsockname()[1]
        with closing(socket.create_connection(("127.0.0.1", port))) as client:
            connection = await listener.accept()
            client.sendall(bytes(100_000))
            await connection.send_some(memoryview(b"ERROR no\n"))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(connection.aclose, 5)
                await anyio.sleep(0.1)
                client.sendall(bytes(1000))
                assert client.recv(100) == b"ERROR no\n"
                assert client.recv(100) == b""
                client.close()


async def test_closing_does_not_wait_for_a_client_that_stays_connected() -> None:
    with listening(Tcp("127.0.0.1", free_port())) as listener:
        client = socket.create_connection(listener.socket.getsockname())
        connection = await listener.accept()
        with closing(client), anyio.fail_after(2):
            await connection.aclose(0.2)


async def test_a_client_already_gone_is_closed_at_once() -> None:
    ours, theirs = socket.socketpair()
    connection = SocketConnection(ours)
    theirs.close()
    with anyio.fail_after(2):
        await connection.aclose(60)


async def test_other_tasks_get_their_turn_while_many_clients_connect(tmp_path: Path) -> None:
    address = Unix(str(tmp_path / "socket"))
    with listening(address) as listener, ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(address.path)
        turns = []
        async with anyio.create_task_group() as tasks:

            async def other() -> None:
                while True:
                    turns.append(1)
                    await anyio.lowlevel.checkpoint()

            tasks.start_soon(other)
            for _ in range(200):
                stack.enter_context(closing((await listener.accept_web()).socket))
            tasks.cancel_scope.cancel()
        assert len(turns) >= 3


async def test_accepting_waits_out_a_lack_of_descriptors() -> None:
    refusals = [errno.EMFILE, errno.ECONNABORTED]

    class Crowded(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            if refusals:
                number = refusals.pop()
                raise OSError(number, os.strerror(number))
            return super().accept()

    with Crowded(socket.AF_INET, socket.SOCK_STREAM) as crowded:
        crowded.bind(("127.0.0.1", 0))
        crowded.listen()
        crowded.setblocking(False)
        await exchange(Listener(crowded, "crowded"), socket.create_connection(crowded.getsockname()))
        assert refusals == []


# Socket activation

ACTIVATED = """
import os, socket, sys
sys.path.insert(0, {root!r})
os.environ["LISTEN_PID"] = os.environ.get("LISTEN_PID") or str(os.getpid())
from cluster_remote.gateway.errors import CannotListen
from cluster_remote.gateway.listeners import inherited_listeners
try:
    for listener in inherited_listeners(os.environ):
        listener.socket.setblocking(True)
        accepted, _ = listener.socket.accept()
        accepted.sendall(listener.name.encode())
        accepted.close()
        listener.close()
except CannotListen as error:
    print(error)
print(sorted(name for name in os.environ if name.startswith("LISTEN_")))
"""


def activated(descriptors: list[int], **variables: str) -> subprocess.Popen[bytes]:
    """Start a program as systemd does: these descriptors become its 3, 4 and so on."""
    program = ACTIVATED.format(root=str(Path(__file__).parents[2]))

    def arrange() -> None:
        copies = [os.dup2(descriptor, 50 + number) for number, descriptor in enumerate(descriptors)]
        for number, copy in enumerate(copies):
            os.dup2(copy, 3 + number)

    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={"LISTEN_FDS": str(len(descriptors)), **variables},
        stdout=subprocess.PIPE,
        close_fds=False,
        preexec_fn=arrange,
    )


def test_sockets_passed_by_systemd_are_used_and_left_in_place(tmp_path: Path) -> None:
    path = tmp_path / "gw"
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as tcp:
        unix.bind(str(path))
        unix.listen()
        with activated([unix.fileno(), tcp.fileno()], LISTEN_FDNAMES="gw:net") as program:
            for family, where in ((socket.AF_UNIX, str(path)), (socket.AF_INET, tcp.getsockname())):
                with socket.socket(family) as client:
                    client.settimeout(20)
                    client.connect(where)
                    name = f"unix:{path}" if family == socket.AF_UNIX else f"tcp://127.0.0.1:{where[1]}"
                    assert client.recv(200).decode() == name
            output, _ = program.communicate(timeout=20)
    # No child of ours shall take the sockets for its own; the socket's file is systemd's.
    assert output.decode().splitlines() == ["[]"]
    assert path.is_socket()


async def test_clients_of_a_socket_for_ipv4_and_ipv6_are_told_apart() -> None:
    """As systemd passes them: otherwise all IPv4 clients would be in one /64, and pay for each other's floods."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        both.setblocking(False)
        listener, port = Listener(both, "both"), both.getsockname()[1]
        addresses = []
        for source, target in (("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.1"), ("::1", "::1")):
            with socket.create_connection((target, port), source_address=(source, 0)):
                accepted = await listener.accept()
                addresses.append((accepted.address, accepted.peer.rpartition(":")[0]))
                await accepted.aclose(0)
    assert addresses == [("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("::/64", "[::1]")]


def test_sockets_passed_to_another_process_are_ignored() -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, activated([tcp.fileno()], LISTEN_PID="1") as program:
        output, _ = program.communicate(timeout=20)
    assert output.decode().splitlines() == ["[]"]


@pytest.mark.parametrize("kind", ["connected", "datagram", "file"])
def test_a_passed_descriptor_that_cannot_be_listened_on_is_named(kind: str, tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        one, other = socket.socketpair()
        with one, other:
            descriptor = {"connected": one.fileno(), "datagram": datagram.fileno(), "file": file.fileno()}[kind]
            with activated([descriptor], LISTEN_FDNAMES="gw") as program:
                output, _ = program.communicate(timeout=20)
    said = output.decode()
    assert "descriptor 3 (gw)" in said
    assert ("is not a socket" in said) if kind == "file" else ("ListenStream=" in said)


@pytest.mark.parametrize("count", ["x", "-1", "1001"])
def test_an_invalid_listen_fds_is_refused(count: str) -> None:
    with pytest.raises(CannotListen, match="LISTEN_FDS"):
        inherited_listeners({"LISTEN_FDS": count, "LISTEN_PID": str(os.getpid())})


def test_without_socket_activation_no_sockets_are_passed() -> None:
    assert inherited_listeners({}) == []
