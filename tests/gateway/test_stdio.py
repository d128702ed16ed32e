"""`cluster-remote serve --stdio`: one client, authenticated by the program's starter."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.cli.command import cluster_remote
from tests.support.forked import popen_forked, run_forked
from tests.support.processes import end_group, wait_until
from tests.support.repositories import Cluster, Repository
from tests.support.slow import only_in_all
from tests.support.ssh import SshServer

ANSWER_SECONDS = 30.0
ABSENT = "SHA256E-s5--2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
STRANGER = "11111111-2222-4333-8444-555555555555"
SERVE = ("cluster-remote", "serve", "--stdio")


def talk(shared: Cluster, said: str, code: int = 0, **env: str) -> tuple[list[str], str]:
    """Return the server's answers to a whole conversation, and its standard error."""
    done = serve(shared.gateway, said=said, env=env)
    assert done.returncode == code, done
    return done.stdout.decode().splitlines(), done.stderr.decode()


def serve(
    gateway: Repository, *options: str, said: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Serve a client that sends everything at once."""
    arguments = (*SERVE[1:], *options)
    return run_forked(gateway.environment, *arguments, cwd=gateway.path, input=said.encode(), env=env, check=False)


@contextmanager
def serving(shared: Cluster) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]]:
    """Run a server that has greeted its client."""
    process = popen_forked(shared.gateway.environment, *SERVE, cwd=shared.gateway.path, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process:
            assert process.stdout.readline() == f"AUTH-SUCCESS {shared.uuid}\n".encode()
            yield process, process.stdin, process.stdout
            process.stdin.close()
            process.wait(ANSWER_SECONDS)
    finally:
        end_group(process.pid)


def test_the_client_is_served_without_authentication(shared: Cluster) -> None:
    answers, said = talk(shared, f"VERSION 4\nCHECKPRESENT {ABSENT}\nPUT  {ABSENT}\nDATA 5\nhelloVALID\n")
    assert answers[:4] == [f"AUTH-SUCCESS {shared.uuid}", "VERSION 4", "FAILURE", "PUT-FROM 0"]
    assert set(answers[4].split(" ")) == {"SUCCESS-PLUS", *(node.uuid for node in shared.nodes)}
    assert said == ""
    answers, _ = talk(shared, f"REMOVE {ABSENT}\n")
    assert answers == [f"AUTH-SUCCESS {shared.uuid}", "SUCCESS"]


@pytest.mark.parametrize("value", ["0", *only_in_all("1", "false")])
def test_the_environment_limits_what_the_client_may_do(shared: Cluster, value: str) -> None:
    said = f"PUT  {ABSENT}\nREMOVE {ABSENT}\n"
    read_only = "ERROR this repository is read-only; write access denied"
    assert talk(shared, said, GIT_ANNEX_SHELL_READONLY=value)[0][1:] == [read_only, read_only]
    answers = talk(shared, f"REMOVE {ABSENT}\nCHECKPRESENT {ABSENT}\n", GIT_ANNEX_SHELL_APPENDONLY=value)[0]
    assert answers[1:] == ["ERROR this repository is append-only; removal denied", "FAILURE"]
    both = talk(shared, said, GIT_ANNEX_SHELL_APPENDONLY=value, GIT_ANNEX_SHELL_READONLY=value)
    assert both[0][1:] == [read_only, read_only]


def test_the_clients_limits_do_not_apply_to_us(shared: Cluster) -> None:
    """An ssh forced command may restrict git-annex-shell to the gateway's directory; the nodes are elsewhere."""
    answers, said = talk(
        shared,
        f"PUT  {ABSENT}\nDATA 5\nhelloREMOVE {ABSENT}\n",
        GIT_ANNEX_SHELL_DIRECTORY=str(shared.gateway.path),
        GIT_ANNEX_SHELL_LIMITED="1",
    )
    assert (answers[1:], said) == (["PUT-FROM 0", "SUCCESS", "SUCCESS"], "")


def test_an_empty_variable_means_no_limit(shared: Cluster) -> None:
    answers, _ = talk(shared, f"REMOVE {ABSENT}\n", GIT_ANNEX_SHELL_READONLY="", GIT_ANNEX_SHELL_APPENDONLY="")
    assert answers[1:] == ["SUCCESS"]


def test_git_is_refused_as_by_git_annex_shell(shared: Cluster) -> None:
    conversation = "VERSION 4\nCONNECT git-upload-pack\n"
    theirs = shared.gateway.environment.run(
        *(
            "git-annex-shell",
            "p2pstdio",
            shared.gateway.path,
            shared.nodes[0].uuid,
            "--uuid",
            shared.uuid,
        ),
        input=conversation.encode(),
        check=False,
    )
    assert theirs.stdout.decode().splitlines() == [f"AUTH-SUCCESS {shared.uuid}", "VERSION 4"]
    assert b"not supported" in theirs.stderr
    answers, said = talk(shared, conversation, code=1)
    assert answers == [f"AUTH-SUCCESS {shared.uuid}", "VERSION 4"]
    (complaint,) = said.splitlines()
    assert "not supported on this connection" in complaint


def test_a_misbehaving_client_makes_the_exit_code_1(shared: Cluster) -> None:
    answers, said = talk(shared, "NOTIFYCHANGE\n", code=1)
    assert answers == [f"AUTH-SUCCESS {shared.uuid}", "ERROR protocol error"]
    assert said == "cluster-remote: unexpected NOTIFYCHANGE\n"


def under_inetd(shared: Cluster, *options: str, said: str = "", where: Path | None = None) -> tuple[list[str], int]:
    """Return the lines that a client gets whose socket is all of the server's standard streams, and the exit code."""
    ours, theirs = socket.socketpair()
    ours.settimeout(ANSWER_SECONDS)
    with ours:
        with theirs:
            at = theirs.fileno()
            process = popen_forked(
                shared.gateway.environment,
                *SERVE,
                *options,
                cwd=where or shared.gateway.path,
                stdin=at,
                stdout=at,
                stderr=at,
            )
        ours.sendall(said.encode())
        answers = b""
        while data := ours.recv(1000):
            answers += data
        return answers.decode().splitlines(), process.wait(ANSWER_SECONDS)


def test_under_inetd_only_the_protocol_reaches_the_client(shared: Cluster) -> None:
    answers, code = under_inetd(shared, said="VERSION 4\nNOTIFYCHANGE\n")
    assert answers == [f"AUTH-SUCCESS {shared.uuid}", "VERSION 4", "ERROR protocol error"]
    assert code == 1


def test_under_inetd_a_client_that_cannot_be_served_is_told_in_the_protocol(shared: Cluster, tmp_path: Path) -> None:
    for options, where, words, code in (
        (("--nosuch",), None, "--nosuch", 2),
        (("--cluster", "nosuch"), None, "nosuch", 2),
        (("--uuid", STRANGER), None, "not behind this gateway", 1),
        ((), tmp_path, "not a git repository", 4),
    ):
        answers, ended = under_inetd(shared, *options, where=where)
        assert [answer.partition(" ")[0] for answer in answers] == ["ERROR"], answers
        assert words in answers[0]
        assert ended == code


def test_a_client_whose_machine_is_dead_is_noticed_under_inetd(shared: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as ours:
        ours.settimeout(ANSWER_SECONDS)
        theirs, _ = listening.accept()
        with theirs:
            at = theirs.fileno()
            process = popen_forked(
                shared.gateway.environment, *SERVE, cwd=shared.gateway.path, stdin=at, stdout=at, stderr=at
            )
            try:
                assert ours.recv(1000).startswith(b"AUTH-SUCCESS")
                assert theirs.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
                ours.shutdown(socket.SHUT_WR)
                assert process.wait(ANSWER_SECONDS) == 0
            finally:
                end_group(process.pid)


def test_stdin_and_stdout_keep_their_blocking_mode(shared: Cluster) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"VERSION 4\n")
    os.close(writing)
    try:
        process = shared.gateway.environment.popen(*SERVE, cwd=shared.gateway.path, stdin=reading)
        with process:
            assert process.stdout is not None
            assert process.stdout.read().decode().splitlines() == [f"AUTH-SUCCESS {shared.uuid}", "VERSION 4"]
            assert process.wait(ANSWER_SECONDS) == 0
        # What one process does to a pipe, all who share it see.
        assert os.get_blocking(reading)
    finally:
        os.close(reading)


@pytest.mark.parametrize("signum", [signal.SIGTERM, *only_in_all(signal.SIGINT)])
def test_a_signal_ends_an_idle_conversation_cleanly(shared: Cluster, signum: int) -> None:
    with serving(shared) as (process, _stdin, stdout):
        process.send_signal(signum)
        assert stdout.read() == b""
        assert process.wait(ANSWER_SECONDS) == 0


def test_a_signal_lets_a_request_finish(shared: Cluster) -> None:
    with serving(shared) as (process, stdin, stdout):
        stdin.write(f"PUT  {ABSENT}\n".encode())
        stdin.flush()
        assert stdout.readline() == b"PUT-FROM 0\n"
        process.send_signal(signal.SIGTERM)
        stdin.write(b"DATA 5\nhello")
        stdin.flush()
        assert stdout.readline() == b"SUCCESS\n"
        assert stdout.read() == b""
        assert process.wait(ANSWER_SECONDS) == 0
    assert shared.holders(ABSENT) == [True, True, True]
    assert talk(shared, f"REMOVE {ABSENT}\n")[0][1:] == ["SUCCESS"]


def test_an_orphaned_lock_takes_no_slot(shared: Cluster) -> None:
    key = "WORM-s5--left-behind"
    assert talk(shared, f"VERSION 4\nPUT  {key}\nDATA 5\nhelloVALID\n")[0][3].startswith("SUCCESS")
    options = ("--max-clients", "1", "--uuid", shared.nodes[0].uuid)
    first = popen_forked(shared.gateway.environment, *SERVE, *options, cwd=shared.gateway.path)
    assert first.stdin is not None
    assert first.stdout is not None
    try:
        first.stdin.write(f"LOCKCONTENT {key}\n".encode())
        first.stdin.close()
        assert [first.stdout.readline() for _ in range(2)][1] == b"SUCCESS\n"
        first.stdout.close()

        def refused() -> bool:
            answers = serve(shared.gateway, *options, said=f"REMOVE {key}\n").stdout.splitlines()[1:]
            return answers in ([b"FAILURE-PLUS"], [b"FAILURE"])

        assert wait_until(refused, ANSWER_SECONDS)
        assert first.poll() is None
    finally:
        end_group(first.pid)
        first.wait(ANSWER_SECONDS)


def test_stdio_and_listen_are_mutually_exclusive(shared: Cluster) -> None:
    said = cluster_remote(shared.gateway, "serve", "--stdio", "--listen", "unix:/tmp/never", code=2).err
    assert "leave out --listen" in said


# As what an ssh server runs in place of git-annex-shell p2pstdio

FORCED = """\
#!/bin/sh
for last; do :; done
if [ "$1" = p2pstdio ] && [ "$last" = {cluster} ] && [ -z "$BEHIND_THE_GATEWAY" ]; then
  cd "$2" && touch "$HOME/served" && BEHIND_THE_GATEWAY=1 exec cluster-remote serve --stdio
fi
exec {real} "$@"
"""


@pytest.fixture
def native(cluster: Cluster, ssh_server: SshServer) -> Repository:
    """A clone over ssh, whose remote origin-mycluster is served by us."""
    environment = cluster.gateway.environment
    client = cluster.clone(source=ssh_server.url(cluster.gateway.path))
    real = environment.which("git-annex-shell")
    environment.program("git-annex-shell", FORCED.format(cluster=cluster.uuid, real=real))
    return client


@pytest.mark.slow
def test_git_annex_testremote_passes_behind_a_forced_command(cluster: Cluster, native: Repository) -> None:
    native.annex("testremote", "--fast", "origin-mycluster", timeout=250)
    assert (cluster.gateway.environment.home / "served").exists()
    key = native.add("f", b"over ssh\n")
    native.annex("copy", "--to", "origin-mycluster", "f")
    assert cluster.holders(key) == [True, True, True]
    assert {node.uuid for node in cluster.nodes} < native.locations(key)
    native.annex("drop", "--from", "origin-mycluster", "f")
    assert cluster.holders(key) == [False, False, False]
    assert wait_until(lambda: not any("serve --stdio" in each.command for each in native.environment.processes()))


def test_uploads_are_recorded_in_the_gateways_repository(shared: Cluster) -> None:
    talk(shared, f"PUT  {ABSENT}\nDATA 5\nhello")
    assert shared.gateway.locations(ABSENT) == {node.uuid for node in shared.nodes}
    talk(shared, f"REMOVE {ABSENT}\n")
    assert shared.gateway.locations(ABSENT) == set()


def test_outside_a_gateways_repository_serve_says_what_to_do(shared: Cluster, tmp_path: Path) -> None:
    environment = shared.gateway.environment
    assert "git annex init" in cluster_remote(environment, "serve", "--stdio", cwd=tmp_path, code=4).err
    said = cluster_remote(shared.nodes[0], "serve", "--stdio", code=1).err
    assert "git annex initcluster" in said
    said = cluster_remote(shared.gateway, "serve", "--stdio", "--cluster", "other", code=2).err
    assert "it has mycluster" in said
    named = serve(shared.gateway, "--cluster", "mycluster")
    assert named.stdout.decode() == f"AUTH-SUCCESS {shared.uuid}\n"


def test_the_named_one_of_several_clusters_is_served(cluster: Cluster) -> None:
    gateway = cluster.gateway
    gateway.git("config", "remote.node1.annex-cluster-node", "mycluster other")
    gateway.annex("initcluster", "other")
    gateway.annex("updatecluster")
    other = gateway.git("config", "annex.cluster.other").stdout.decode().strip()
    refused = serve(gateway)
    assert refused.returncode != 0
    assert b"mycluster" in refused.stderr
    for uuid in (other, cluster.uuid, cluster.nodes[0].uuid):
        named = serve(gateway, "--uuid", uuid)
        assert named.stdout.decode() == f"AUTH-SUCCESS {uuid}\n"
