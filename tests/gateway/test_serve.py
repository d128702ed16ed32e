"""`cluster-remote serve` from its start to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_remote.gateway.tokens import Tokens
from cluster_remote.p2p.server import Mode
from tests.cli.command import cluster_remote
from tests.gateway.gateways import Gateway, gateway_of, serve
from tests.gateway.test_gateway import CLIENT, answer, hear, say
from tests.support.certificates import make_certificate
from tests.support.processes import end_group, wait_until
from tests.support.repositories import Cluster
from tests.support.sockets import free_port

SECONDS = 30.0
SIZE = 4_000_000
KEY = f"WORM-s{SIZE}--under-way"


def admitted(gateway: Gateway) -> socket.socket:
    """Return an authenticated client."""
    client = gateway.connect()
    greeting = answer(client, f"AUTH {CLIENT} {gateway.tokens[Mode.READ_WRITE]}")
    assert greeting == f"AUTH-SUCCESS {gateway.cluster.uuid}"
    assert answer(client, "VERSION 4") == "VERSION 4"
    return client


def refuses(gateway: Gateway) -> bool:
    """Return whether neither address accepts connections any more."""
    with socket.socket() as tcp:
        return not gateway.path.exists() and tcp.connect_ex(("127.0.0.1", gateway.port)) != 0


# The end


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_serve_and_its_idle_clients_cleanly(shared: Cluster, signum: int) -> None:
    with gateway_of(shared) as gateway, admitted(gateway) as client, gateway.connect() as stranger:
        assert gateway.stop(signum) == 0
        assert hear(client) == ""
        assert hear(stranger) == ""
        assert refuses(gateway)
        assert "Traceback" not in gateway.log.read_text()
    assert wait_until(lambda: not shared.gateway.environment.processes())


def test_a_signal_lets_a_running_transfer_finish(shared: Cluster) -> None:
    with gateway_of(shared) as gateway, admitted(gateway) as client:
        content = os.urandom(SIZE)
        assert answer(client, f"PUT  {KEY}") == "PUT-FROM 0"
        say(client, f"DATA {SIZE}")
        client.sendall(content[: SIZE // 2])
        gateway.process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: refuses(gateway), SECONDS)
        time.sleep(0.5)
        client.sendall(content[SIZE // 2 :])
        assert answer(client, "VALID").startswith("SUCCESS-PLUS ")
        assert hear(client) == ""
        assert gateway.process.wait(SECONDS) == 0
    assert [node.object_bytes(KEY) == content for node in shared.nodes] == [True, True, True]
    with gateway_of(shared) as gateway, admitted(gateway) as client:
        assert answer(client, f"REMOVE {KEY}").startswith("SUCCESS-PLUS ")


def test_a_signal_cuts_off_a_transfer_that_never_ends(shared: Cluster) -> None:
    with gateway_of(shared) as gateway, admitted(gateway) as client:
        assert answer(client, f"PUT  {KEY}") == "PUT-FROM 0"
        say(client, f"DATA {SIZE}")
        began = time.monotonic()
        assert gateway.stop(within=40) == 0
        assert time.monotonic() - began > 9
        assert "cutting off 1 connections" in gateway.log.read_text()
    assert wait_until(lambda: not shared.gateway.environment.processes())
    assert shared.holders(KEY) == [False, False, False]


def test_a_second_signal_ends_serve_at_once(shared: Cluster) -> None:
    with gateway_of(shared) as gateway, admitted(gateway) as client:
        assert answer(client, f"PUT  {KEY}") == "PUT-FROM 0"
        gateway.process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: refuses(gateway), SECONDS)
        began = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - began < 9
        assert "again" in gateway.log.read_text()
    assert wait_until(lambda: not shared.gateway.environment.processes())


def test_serve_restarts_after_being_killed(shared: Cluster) -> None:
    with gateway_of(shared) as gateway:
        gateway.process.kill()
        gateway.process.wait(SECONDS)
        assert gateway.path.exists()
    with gateway_of(shared) as gateway, admitted(gateway):
        assert gateway.stop() == 0


def test_serve_survives_losing_the_reader_of_its_log(shared: Cluster) -> None:
    path = shared.gateway.environment.directory / "unread"
    process = serve(shared.gateway, "--listen", f"unix:{path}", stderr=subprocess.PIPE)
    try:
        with process:
            assert process.stderr is not None
            assert wait_until(path.exists, SECONDS)
            process.stderr.close()
            for _ in range(2):
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(SECONDS)
                    client.connect(str(path))
                    assert answer(client, "nonsense").startswith("ERROR ")
                    assert hear(client) == ""
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
    finally:
        end_group(process.pid)


# Clients that do not play along


@pytest.fixture(scope="module")
def impatient(shared: Cluster) -> Iterator[Gateway]:
    """A gateway with a short timeout."""
    with gateway_of(shared, "--timeout", "5", name="impatient") as gateway:
        yield gateway


def test_a_stalled_upload_times_out_and_is_stored_nowhere(shared: Cluster, impatient: Gateway) -> None:
    with admitted(impatient) as client:
        assert answer(client, f"PUT  {KEY}") == "PUT-FROM 0"
        say(client, f"DATA {SIZE}")
        client.sendall(bytes(1000))
        assert hear(client) == ""
    assert shared.holders(KEY) == [False, False, False]
    assert "no progress for 5 seconds" in impatient.log.read_text()


def test_a_client_that_reads_nothing_is_disconnected(shared: Cluster, impatient: Gateway) -> None:
    content = os.urandom(SIZE)
    for node in shared.nodes:
        node.set_key(KEY, content)
        shared.gateway.annex("setpresentkey", KEY, node.uuid, "1")
    with admitted(impatient) as client:
        say(client, f"GET 0  {KEY}")
        assert wait_until(lambda: "while sending content" in impatient.log.read_text(), SECONDS)
    with admitted(impatient) as client:
        assert answer(client, f"REMOVE {KEY}").startswith("SUCCESS-PLUS ")


def test_a_client_that_half_closes_is_still_answered(impatient: Gateway) -> None:
    with admitted(impatient) as client:
        say(client, f"CHECKPRESENT {KEY}", f"CHECKPRESENT {KEY}")
        client.shutdown(socket.SHUT_WR)
        assert hear(client) == "FAILURE\nFAILURE\n"


@pytest.mark.parametrize("said", [b"\x00" * 1000 + b"\n", b"x" * 70_000, b"GET x x x\n", b"\n", b"AUTH\n"])
def test_garbage_after_authentication_ends_only_that_conversation(impatient: Gateway, said: bytes) -> None:
    with admitted(impatient) as client, admitted(impatient) as other:
        client.sendall(said)
        assert hear(client).startswith("ERROR protocol error")
        assert answer(other, f"CHECKPRESENT {KEY}") == "FAILURE"


def test_many_short_connections_leave_nothing_behind(shared: Cluster, impatient: Gateway) -> None:
    descriptors = Path(f"/proc/{impatient.process.pid}/fd")
    with admitted(impatient) as client:
        # What the gateway opens once and keeps is open from here on.
        assert answer(client, f"CHECKPRESENT {KEY}") == "FAILURE"
    before = len(list(descriptors.iterdir()))
    for number in range(60):
        with impatient.connect() as client:
            if number % 2:
                say(client, f"AUTH {CLIENT} {impatient.tokens[Mode.READ_WRITE]}")
    with admitted(impatient) as client:
        assert answer(client, f"CHECKPRESENT {KEY}") == "FAILURE"
    assert wait_until(lambda: len(list(descriptors.iterdir())) <= before)
    assert "Traceback" not in impatient.log.read_text()


# The command line


def test_serve_without_an_address_lists_the_choices(shared: Cluster) -> None:
    said = cluster_remote(shared.gateway, "serve", code=2).err
    assert "--listen unix:/path" in said
    assert "--stdio" in said


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--listen", "ssh://nas/annex"), 2, "a gateway listens on unix:/path"),
        (("--listen", "unix:relative"), 2, "absolute"),
        (("--listen", "unix:/proc/nowhere/gw"), 1, "cannot listen on unix:/proc/nowhere/gw"),
        (("--cluster", "other", "--listen", "unix:/tmp/x"), 2, "it has mycluster"),
        (("--timeout", "0", "--listen", "unix:/tmp/x"), 2, "timeout"),
        (("--max-clients", "0", "--listen", "unix:/tmp/x"), 2, "max-clients"),
    ],
)
def test_an_impossible_serve_is_explained(shared: Cluster, arguments: tuple[str, ...], code: int, words: str) -> None:
    assert words in cluster_remote(shared.gateway, "serve", *arguments, code=code).err


def test_a_second_gateway_on_the_same_socket_is_refused_without_harming_the_first(shared: Cluster) -> None:
    with gateway_of(shared) as gateway:
        said = cluster_remote(shared.gateway, "serve", "--listen", gateway.unix, code=1).err
        assert "already in use" in said
        # Nor does it leave the sockets behind that it could have.
        other = shared.gateway.environment.directory / "other"
        cluster_remote(shared.gateway, "serve", "--listen", f"unix:{other}", "--listen", gateway.tcp, code=1)
        assert not other.exists()
        with admitted(gateway):
            pass


def test_serve_warns_of_unencrypted_traffic_and_of_missing_tokens(shared: Cluster) -> None:
    tokens = shared.gateway.path / ".git/cluster-remote"
    kept = tokens.rename(tokens.with_name("kept")) if tokens.exists() else None
    log = shared.gateway.environment.directory / "warnings"
    with log.open("wb") as err:
        process = serve(shared.gateway, "--listen", f"tcp://0.0.0.0:{free_port()}", stderr=err.fileno())
    try:
        assert wait_until(lambda: "serving" in log.read_text(), SECONDS)
        assert "no tokens yet" in log.read_text()
        assert "reachable over the network" in log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    finally:
        end_group(process.pid)
        process.wait(SECONDS)
        if kept is not None:
            kept.rename(tokens)


HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_FDNAMES=sys.argv[2], LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[3], sys.argv[3:])
"""


def hand_over(cluster: Cluster, listening: socket.socket, name: str, *options: str) -> subprocess.Popen[bytes]:
    """Start `cluster-remote serve` on a socket that it gets under a name, as from systemd."""
    return subprocess.Popen(
        [sys.executable, "-c", HAND_OVER, str(listening.fileno()), name, "cluster-remote", "serve", *options],
        cwd=cluster.gateway.path,
        env=cluster.gateway.environment.env,
        pass_fds=[listening.fileno()],
        start_new_session=True,
        stderr=subprocess.PIPE,
    )


@contextlib.contextmanager
def handed_over(cluster: Cluster, listening: socket.socket, name: str, *options: str) -> Iterator[None]:
    """Have it serve until the end of the context."""
    process = hand_over(cluster, listening, name, *options)
    try:
        yield
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SECONDS)
        assert process.returncode == 0
    finally:
        end_group(process.pid)
        process.communicate(timeout=SECONDS)


def test_a_socket_from_systemd_is_served_and_not_removed(shared: Cluster, tmp_path: Path) -> None:
    environment = shared.gateway.environment
    _, token = Tokens(shared.gateway.path / ".git/cluster-remote/tokens").create(Mode.READ_ONLY)
    path = environment.directory / "handed"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with handed_over(shared, listening, "gw"), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(SECONDS)
            client.connect(str(path))
            assert answer(client, f"AUTH {CLIENT} {token}") == f"AUTH-SUCCESS {shared.uuid}"
            assert answer(client, f"CHECKPRESENT {KEY}") == "FAILURE"
    assert path.is_socket()


@pytest.mark.parametrize("name", ["http", "http/data", "https/data", "tls"])
def test_a_socket_from_systemd_speaks_the_protocol_that_its_name_says(shared: Cluster, name: str) -> None:
    environment = shared.gateway.environment
    _, token = Tokens(shared.gateway.path / ".git/cluster-remote/tokens").create(Mode.READ_ONLY)
    certificate, key = make_certificate(environment)
    environment.run("git", "config", "--global", "http.sslCAInfo", certificate)
    tls = ("--certificate", str(certificate), "--key", str(key)) if name in ("https/data", "tls") else ()
    with socket.create_server(("127.0.0.1", 0)) as listening, handed_over(shared, listening, name, *tls):
        at, path = f"localhost:{listening.getsockname()[1]}", name.partition("/")[2]
        url = (
            f"tls://{at}" if name == "tls" else f"annex+{name.partition('/')[0]}://{at}/{path and path + '/'}git-annex/"
        )
        cluster_remote(shared.gateway, "ping", url, env={"CLUSTER_REMOTE_TOKEN": token})


def test_a_socket_from_systemd_that_wants_what_it_cannot_have_is_refused(shared: Cluster) -> None:
    for name, words in (
        ("tls", "--certificate"),
        ("HTTPS", "--certificate"),
        ("https/a b", "FileDescriptorName"),
        ("tls/data", "FileDescriptorName"),
    ):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            process = hand_over(shared, listening, name)
            _, said = process.communicate(timeout=SECONDS)
        assert process.returncode != 0
        assert words in said.decode()
