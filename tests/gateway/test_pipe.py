"""git-annex-p2p-cluster ADDRESS: bytes both ways, whatever they are, until the gateway closes."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.sockets import free_port

PIPE = "git-annex-p2p-cluster"
SECONDS = 20.0


@contextmanager
def listener(kind: str, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    if kind == "unix":
        path = tmp_path / "with space:and%more"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen()
            listening.settimeout(SECONDS)
            yield listening, f"unix:{path}"
    else:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.settimeout(SECONDS)
            yield listening, f"tcp://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def piped(
    address: str, serve: Callable[[socket.socket], None], listening: socket.socket
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the pipe, connected to a thread that serves one connection."""

    def accept() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(SECONDS)
            serve(connection)

    thread = threading.Thread(target=accept)
    thread.start()
    with subprocess.Popen([PIPE, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        assert process.wait(SECONDS) == 0
    thread.join(SECONDS)
    assert not thread.is_alive()


def receive_all(connection: socket.socket) -> bytes:
    received = bytearray()
    while data := connection.recv(1 << 20):
        received += data
    return bytes(received)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_every_byte_arrives_in_both_directions(kind: str, tmp_path: Path) -> None:
    there, back = os.urandom(5_000_000), os.urandom(5_000_000)
    received: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        # At the same time, or both sides would come to wait for each other.
        sender = threading.Thread(target=connection.sendall, args=(back,))
        sender.start()
        received.append(receive_all(connection))
        sender.join()

    with listener(kind, tmp_path) as (listening, address), piped(address, serve, listening) as process:
        output, _ = process.communicate(there, SECONDS)
        assert output == back
    assert received == [there]


def test_end_of_input_is_passed_on_and_answers_still_arrive(tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        said = receive_all(connection)
        connection.sendall(b"after the end: " + said)

    with listener("unix", tmp_path) as (listening, address), piped(address, serve, listening) as process:
        assert process.communicate(b"hello", SECONDS)[0] == b"after the end: hello"


def test_the_pipe_ends_when_the_gateway_closes_even_with_open_input(tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(b"bye")

    with listener("tcp", tmp_path) as (listening, address), piped(address, serve, listening) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"bye"
        assert process.wait(SECONDS) == 0


def test_the_pipe_disconnects_when_nobody_reads_its_output(tmp_path: Path) -> None:
    def endless(connection: socket.socket) -> None:
        while True:
            connection.sendall(bytes(1 << 20))

    def serve(connection: socket.socket) -> None:
        with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):
            endless(connection)

    with listener("unix", tmp_path) as (listening, address), piped(address, serve, listening) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()


def test_a_node_in_the_address_does_not_change_the_connection(tmp_path: Path) -> None:
    with listener("unix", tmp_path) as (listening, address):
        node = "?node=0e15e000-0000-4000-8000-000000000003"
        with piped(address + node, lambda connection: connection.sendall(b"same"), listening) as process:
            assert process.communicate(b"", SECONDS)[0] == b"same"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PIPE, *arguments], capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("unix:/a", "unix:/b")])
def test_wrong_usage_shows_the_right_usage(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: git-annex-p2p-cluster ADDRESS")


@pytest.mark.parametrize("address", ["/srv/annex", "ssh://nas/annex", "unix:relative", "tcp://nas", "nas:annex", "x y"])
def test_an_address_that_is_not_a_socket_is_refused(address: str) -> None:
    done = run(address)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("git-annex-p2p-cluster: ")


def test_git_annex_asking_for_our_address_gets_a_hint_at_serve() -> None:
    done = run("address")
    assert (done.returncode, done.stdout) == (2, "")
    assert "cluster-remote serve" in done.stderr


@pytest.mark.parametrize("kind", ["unix", "tcp", "name"])
def test_a_missing_gateway_is_named(kind: str, tmp_path: Path) -> None:
    address = {
        "unix": f"unix:{tmp_path}/nobody",
        "tcp": f"tcp://127.0.0.1:{free_port()}",
        "name": "tcp://no-such-host.invalid:1",
    }[kind]
    done = run(address)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"cannot connect to {address}: " in done.stderr
    assert "Traceback" not in done.stderr
