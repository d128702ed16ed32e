"""The infrastructure of the tests keeps its promises."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid as uuids
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.environment import MARKER, Environment, temporary_environment
from tests.support.peers import (
    Close,
    Drain,
    Expect,
    Pause,
    Read,
    Reset,
    ScriptedPeer,
    Send,
    Stall,
    limit_version,
    opening,
)
from tests.support.processes import assert_no_children_left, descendants, wait_until
from tests.support.repositories import Cluster, Repository, locked, make_cluster, make_repository
from tests.support.shells import scripted_shell
from tests.support.sockets import free_port, serve_p2p, tcp_bridge
from tests.support.ssh import SshServer

ODD_NAMES = [b"-dash", b"two  spaces", b"per%cent &a:b", b"quote\"'`$x", b"tab\tand\x01", b"latin \xe9", "ünï".encode()]


def commands(environment: Environment) -> list[str]:
    """Return the command lines of an environment's processes."""
    return [process.command for process in environment.processes()]


# Environments


def test_environment_inherits_nothing_of_git_or_ssh(monkeypatch: pytest.MonkeyPatch, environment: Environment) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere")
    variables = environment.run("env", "-0").stdout.split(b"\0")
    names = {variable.partition(b"=")[0] for variable in variables}
    assert not names & {b"GIT_DIR", b"SSH_AUTH_SOCK"}
    assert f"HOME={environment.home}".encode() in variables
    assert f"{MARKER}={environment.directory}".encode() in variables


def test_environment_has_its_own_git_configuration(environment: Environment) -> None:
    listed = environment.run("git", "config", "--list", "--show-origin").stdout.decode()
    assert {line.split("\t")[0] for line in listed.splitlines()} == {f"file:{environment.home}/.gitconfig"}
    assert "annex.security.allowed-ip-addresses=all" in listed
    assert "init.defaultbranch=main" in listed


def test_environment_finds_git_annex_by_all_names_and_what_is_beside_the_interpreter(environment: Environment) -> None:
    assert b"git-annex version: 10." in environment.run("git-annex", "version").stdout
    for name in ("git-annex", "git-annex-shell", "git-remote-annex", "git-remote-p2p-annex"):
        assert environment.which(name) == environment.annex / name
        assert environment.which(name).exists()
    assert environment.which("cluster-remote").parent == Path(sys.executable).parent


def test_a_failed_command_shows_what_it_wrote(environment: Environment) -> None:
    with pytest.raises(AssertionError, match=r"(?s)exited with 3.*one.*two"):
        environment.run("sh", "-c", "echo one; echo two >&2; exit 3")
    assert environment.run("sh", "-c", "exit 3", check=False).returncode == 3


def test_a_command_that_takes_too_long_is_killed_with_its_children(environment: Environment) -> None:
    with pytest.raises(AssertionError, match=r"(?s)still running after 0.3 s.*begun"):
        environment.run("sh", "-c", "echo begun; sleep 100 & sleep 100", timeout=0.3)
    assert wait_until(lambda: environment.processes() == [])


def test_input_reaches_a_command_and_without_it_there_is_none(environment: Environment) -> None:
    assert environment.run("cat", input=b"\0\xff\n").stdout == b"\0\xff\n"
    assert environment.run("cat").stdout == b""


def test_a_shim_comes_before_the_real_program_and_does_not_hide_it(environment: Environment) -> None:
    real = environment.which("git-annex")
    environment.program("git-annex", "#!/bin/sh\necho shim\n")
    assert environment.run("git-annex", "version").stdout == b"shim\n"
    assert environment.which("git-annex") == real


def test_an_applied_environment_is_that_of_the_test_process_until_the_end(environment: Environment) -> None:
    before, where = dict(os.environ), Path.cwd()
    with environment.applied(cwd=environment.home):
        assert dict(os.environ) == environment.env
        assert Path.cwd() == environment.home
        assert environment.processes() == []
    assert dict(os.environ) == before
    assert Path.cwd() == where


def leave_a_process(made: Environment) -> None:
    """Start a process that outlives the command that started it."""
    made.run("sh", "-c", "sleep 77 >/dev/null 2>&1 &")
    assert wait_until(lambda: commands(made) == ["sleep 77"])


def test_a_process_left_behind_is_named_and_killed() -> None:
    with temporary_environment() as made:
        leave_a_process(made)
        with pytest.raises(AssertionError, match=r"left behind:\n\d+ .*sleep 77"):
            made.assert_no_process_left(within=0.2)
        assert wait_until(lambda: made.processes() == [])
    assert not made.directory.exists()


def test_an_environment_with_a_process_left_fails() -> None:
    lasting = temporary_environment(within=0.2)
    made = lasting.__enter__()
    leave_a_process(made)
    with pytest.raises(AssertionError, match="left behind"):
        lasting.__exit__(None, None, None)
    assert wait_until(lambda: made.processes() == [])
    assert not made.directory.exists()


def test_a_tests_failure_is_not_hidden_by_leftover_processes() -> None:
    lasting = temporary_environment()
    made = lasting.__enter__()
    leave_a_process(made)
    failure = ValueError("the test")
    assert not lasting.__exit__(ValueError, failure, None)
    assert wait_until(lambda: made.processes() == [])
    assert not made.directory.exists()


def test_read_only_objects_are_removed_with_their_environment() -> None:
    with temporary_environment() as made:
        repository = make_repository(made, made.directory / "it", "it")
        assert repository.has_object(repository.add("f", b"content"))
    assert not made.directory.exists()


# Processes


def test_descendants_are_children_and_their_children(environment: Environment) -> None:
    with environment.popen("sh", "-c", "sleep 50 & sh -c 'sleep 51; :'") as shell:
        expected = ["sh -c sleep 51; :", "sleep 50", "sleep 51"]
        assert wait_until(lambda: sorted(process.command for process in descendants(shell.pid)) == expected)
        assert {process.pid for process in descendants(shell.pid)} <= {
            process.pid for process in environment.processes()
        }
        with pytest.raises(AssertionError, match="sleep 50"):
            assert_no_children_left(shell.pid, within=0.1)
        assert_no_children_left(shell.pid)


def test_a_zombie_is_not_a_process_left(environment: Environment) -> None:
    with environment.popen("true") as child:
        assert wait_until(lambda: environment.processes() == [])
        assert_no_children_left(os.getpid(), within=1)
        assert child.wait() == 0


# Repositories and clusters


@pytest.fixture(scope="module")
def odd(make_environment: Callable[[], Environment]) -> Repository:
    """A repository for odd names, each used once."""
    environment = make_environment()
    return make_repository(environment, environment.directory / "it", "it")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_file_names_have_keys_with_content(odd: Repository, name: bytes) -> None:
    key = odd.add(name, b"content of " + name, backend="WORM")
    assert key.startswith(f"WORM-s{len(b'content of ' + name)}-m")
    assert odd.key(name) == key
    assert os.fsdecode(odd.annex("lookupkey", "--", name).stdout) == f"{key}\n"
    assert odd.object_bytes(key) == b"content of " + name
    assert odd.locations(key) == {odd.uuid}


@pytest.mark.parametrize("name", ["a:b&c%d/e_f", "q'\"$`\x01\\", "ünï", os.fsdecode(b"latin \xe9").replace(" ", "")])
def test_odd_keys_have_content_and_locations(odd: Repository, name: str) -> None:
    key = f"WORM-s4-m1--{name}"
    assert not odd.has_object(key)
    assert odd.locations(key) == set()
    odd.set_key(key, b"data")
    assert odd.object_bytes(key) == b"data"
    assert odd.locations(key) == {odd.uuid}
    elsewhere = str(uuids.uuid4())
    odd.annex("setpresentkey", key, elsewhere, "1")
    assert odd.locations(key) == {odd.uuid, elsewhere}
    odd.annex("setpresentkey", key, elsewhere, "0")
    assert odd.locations(key) == {odd.uuid}


def test_locations_include_the_journals(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "it", "it")
    repository.git("config", "annex.alwayscommit", "false")
    key = repository.add("sub/file_with_underscores", b"x")
    assert list((repository.path / ".git/annex/journal").glob("*.log"))
    assert repository.locations(key) == {repository.uuid}
    repository.git("config", "annex.alwayscommit", "true")
    repository.annex("merge")
    assert not list((repository.path / ".git/annex/journal").glob("*.log"))
    assert repository.locations(key) == {repository.uuid}


def test_locations_are_independent_of_the_objects(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "it", "it")
    key = repository.add("f", b"x")
    repository.annex("setpresentkey", key, repository.uuid, "0")
    assert repository.locations(key) == set()
    assert repository.has_object(key)
    repository.annex("setpresentkey", key, repository.uuid, "1")
    repository.annex("drop", "--force", "f")
    assert not repository.has_object(key)
    with pytest.raises(AssertionError, match="no content"):
        repository.object_bytes(key)


def test_writing_over_an_annexed_file_leaves_its_object_alone(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "it", "it")
    key = repository.add("f", b"first")
    assert repository.add("f", b"second") != key
    assert repository.object_bytes(key) == b"first"


def test_config_is_none_only_for_a_missing_value(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "it", "it")
    assert repository.config("no.such") is None
    repository.git("config", "some.such", "value with spaces ")
    assert repository.config("some.such") == "value with spaces "


def test_cluster_nodes_are_distinct_and_their_descriptions_differ_from_their_names(cluster: Cluster) -> None:
    uuids_of_nodes = [node.uuid for node in cluster.nodes]
    assert len({*uuids_of_nodes, cluster.gateway.uuid, cluster.uuid}) == 5
    assert cluster.uuid.startswith("ac")
    descriptions = cluster.gateway.descriptions()
    assert [descriptions[uuid] for uuid in uuids_of_nodes] == [
        "first disk (attic)",
        "second disk (cellar)",
        "NAS: shelf 3",
    ]
    members = cluster.gateway.git("cat-file", "blob", "git-annex:cluster.log").stdout.decode().split()
    assert members[1] == cluster.uuid
    assert set(members[2:]) == set(uuids_of_nodes)
    assert cluster.gateway.config(f"annex.cluster.{cluster.name}") == cluster.uuid


def test_copied_clusters_refer_only_to_their_own_nodes(environment: Environment) -> None:
    one = make_cluster(environment, environment.directory / "one")
    two = make_cluster(environment, environment.directory / "two")
    assert one.uuid == two.uuid
    key = one.gateway.add("f", b"for one")
    one.gateway.annex("copy", "--to", "node2", "f")
    assert one.holders(key) == [False, True, False]
    assert two.holders(key) == [False, False, False]
    for node in (*two.nodes, two.gateway):
        config = (node.path / ".git/config").read_text()
        urls = re.findall(r"url = (.*)", config)
        assert urls
        assert all(Path(url).parent == environment.directory / "two" for url in urls)


def test_cluster_may_have_another_size_and_name(environment: Environment) -> None:
    made = make_cluster(environment, environment.directory, nodes=1, name="tiny")
    assert [node.path.name for node in made.nodes] == ["node1"]
    assert made.gateway.config("annex.cluster.tiny") == made.uuid


def test_client_knows_the_cluster_and_has_only_origin(cluster: Cluster, client: Repository) -> None:
    assert client.git("remote").stdout == b"origin\n"
    descriptions = client.descriptions()
    assert descriptions[cluster.uuid] == f"cluster {cluster.name}"
    assert {node.uuid for node in cluster.nodes} <= descriptions.keys()
    assert descriptions[client.uuid] == "client (desk)"
    assert client.uuid not in {cluster.gateway.uuid, cluster.clone("other").uuid}


def test_the_native_gateway_serves_the_cluster(cluster: Cluster, client: Repository) -> None:
    """Over p2pstdio, without any client of git-annex: PUT one key and find it on every node."""
    key = client.add("f", b"hello cluster")
    shell = ("git-annex-shell", "p2pstdio", cluster.gateway.path, client.uuid, "--uuid", cluster.uuid)
    said = f"VERSION 4\nBYPASS\nPUT f {key}\nDATA 13\nhello clusterVALID\n".encode()
    with cluster.gateway.environment.popen(*shell) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(said)
        process.stdin.flush()
        lines = [process.stdout.readline() for _ in range(4)]
    assert lines[:3] == [f"AUTH-SUCCESS {cluster.uuid}\n".encode(), b"VERSION 4\n", b"PUT-FROM 0\n"]
    assert set(lines[3].decode().split()) == {"SUCCESS-PLUS", *(node.uuid for node in cluster.nodes)}
    assert cluster.holders(key) == [True, True, True]


def test_locked_content_cannot_be_dropped_until_released(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "it", "it")
    key = repository.add("f", b"keep me")
    with locked(repository, key):
        refused = repository.annex("drop", "--force", "f", check=False)
        assert refused.returncode != 0
        assert repository.has_object(key)
    environment.assert_no_process_left()
    repository.annex("drop", "--force", "f")
    assert not repository.has_object(key)


def test_locking_missing_content_is_an_error(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "it", "it")
    with pytest.raises(AssertionError, match="answered b'FAILURE'"), locked(repository, "WORM-s1--none"):
        pass


# ssh


def test_ssh_passes_bytes_and_exit_status(environment: Environment, ssh_server: SshServer) -> None:
    everything = bytes(range(256)) * 40_000
    ssh = environment.env["GIT_SSH_COMMAND"]
    done = environment.run(
        "sh", "-c", f"{ssh} {ssh_server.host} 'cat; echo complaint >&2; exit 7'", input=everything, check=False
    )
    assert done.stdout == everything
    assert done.stderr == b"complaint\n"
    assert done.returncode == 7
    assert ssh_server.connections == 1


def test_ssh_commands_run_in_the_environment(environment: Environment, ssh_server: SshServer) -> None:
    done = environment.run("sh", "-c", f"{ssh_server.client_command} {ssh_server.host} 'pwd; echo $HOME'")
    assert done.stdout.decode().split() == [str(environment.home)] * 2


def test_ssh_refuses_clients_without_a_key(environment: Environment, ssh_server: SshServer) -> None:
    done = environment.run(
        *("ssh", "-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"),
        *("-o", "UserKnownHostsFile=/dev/null", "-o", "IdentityFile=/nowhere", "-o", "IdentityAgent=none"),
        *("-p", str(ssh_server.port), "127.0.0.1", "true"),
        check=False,
    )
    assert done.returncode == 255
    assert b"Permission denied" in done.stderr


def test_git_and_git_annex_work_over_ssh(cluster: Cluster, ssh_server: SshServer) -> None:
    client = cluster.clone(source=ssh_server.url(cluster.gateway.path))
    key = client.add("f", b"over ssh")
    client.annex("copy", "--to", "origin", "f")
    assert cluster.gateway.has_object(key)
    assert ssh_server.connections >= 2


def test_ssh_server_goes_away_and_comes_back_on_its_port(environment: Environment, ssh_server: SshServer) -> None:
    ssh = f"{ssh_server.client_command} {ssh_server.host}"
    port = ssh_server.port
    with environment.popen("sh", "-c", f"exec {ssh} 'echo ready; sleep 60'", stderr=subprocess.PIPE) as caught:
        assert caught.stdout is not None
        assert caught.stdout.readline() == b"ready\n"
        ssh_server.stop()
        assert caught.wait(10) == 255
    refused = environment.run("sh", "-c", f"{ssh} true", check=False)
    assert refused.returncode == 255
    assert b"refused" in refused.stderr
    environment.assert_no_process_left()
    ssh_server.start()
    assert ssh_server.port == port
    assert environment.run("sh", "-c", f"{ssh} echo back").stdout == b"back\n"
    assert ssh_server.connections == 2


def test_a_command_over_ssh_ends_when_its_client_is_killed(environment: Environment, ssh_server: SshServer) -> None:
    ssh = f"exec {ssh_server.client_command} {ssh_server.host} 'echo ready; cat'"
    with environment.popen("sh", "-c", ssh) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        assert wait_until(lambda: "cat" in commands(environment))
        client.send_signal(signal.SIGKILL)
    environment.assert_no_process_left()


@pytest.mark.parametrize("end", ["client", "server"])
def test_a_command_over_ssh_that_never_stops_writing_ends_with_its_client_or_server(
    environment: Environment, ssh_server: SshServer, end: str
) -> None:
    with environment.popen("sh", "-c", f"exec {ssh_server.client_command} {ssh_server.host} yes") as client:
        assert client.stdout is not None
        assert client.stdout.read(4) == b"y\ny\n"
        if end == "server":
            ssh_server.stop()
            assert wait_until(lambda: "yes" not in commands(environment))
        client.kill()
    environment.assert_no_process_left()


# Sockets


def authenticate(connection: socket.socket, token: str) -> bytes:
    """Return a peer's first line in answer to AUTH."""
    connection.settimeout(20)
    connection.sendall(f"AUTH {uuids.uuid4()} {token}\n".encode())
    with connection.makefile("rb") as lines:
        return lines.readline()


def test_free_ports_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass


def test_remotedaemon_serves_a_repository_on_a_socket_and_ends_with_it(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "it", "it")
    with serve_p2p(repository) as (path, token):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            assert authenticate(connection, token) == f"AUTH-SUCCESS {repository.uuid}\n".encode()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            assert authenticate(connection, "wrong") == b"AUTH-FAILURE\n"
    environment.assert_no_process_left()
    assert not path.exists()


def test_remotedaemons_of_two_repositories_serve_side_by_side_and_again(environment: Environment) -> None:
    one = make_repository(environment, environment.directory / "one", "one")
    two = make_repository(environment, environment.directory / "two", "two")
    for _ in range(2):
        with serve_p2p(one) as (first, first_token), serve_p2p(two) as (second, second_token):
            for repository, path, token in ((one, first, first_token), (two, second, second_token)):
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(str(path))
                    assert authenticate(connection, token) == f"AUTH-SUCCESS {repository.uuid}\n".encode()


def test_tcp_bridge_leads_to_the_socket(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "it", "it")
    with serve_p2p(repository) as (path, token), tcp_bridge(path) as address:
        for _ in range(3):
            with socket.create_connection(address) as connection:
                assert authenticate(connection, token) == f"AUTH-SUCCESS {repository.uuid}\n".encode()


def test_tcp_bridge_keeps_half_closed_connections_and_closes_all_at_the_end(tmp_path: Path) -> None:
    with ScriptedPeer([Read(300_000), Send(b"y" * 300_000), Stall()], unix=tmp_path / "s") as peer:
        with tcp_bridge(tmp_path / "s") as address, socket.create_connection(address) as connection:
            connection.settimeout(20)
            connection.sendall(b"x" * 300_000)
            connection.shutdown(socket.SHUT_WR)
            assert connection.makefile("rb").read(300_000) == b"y" * 300_000
        assert peer.bodies == [b"x" * 300_000]


def test_tcp_bridge_to_nowhere_closes_the_connection(tmp_path: Path) -> None:
    with tcp_bridge(tmp_path / "none") as address, socket.create_connection(address) as connection:
        connection.settimeout(20)
        assert connection.recv(1) == b""


# Scripted peers


@pytest.fixture(params=["unix", "tcp"])
def make_peer(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., ScriptedPeer]:
    """Make peers on either kind of socket."""
    if request.param == "tcp":
        return lambda script: ScriptedPeer(script, tcp=True)
    return lambda script: ScriptedPeer(script, unix=tmp_path / "peer")


def connect(peer: ScriptedPeer) -> socket.socket:
    """Connect to a scripted peer."""
    if isinstance(peer.address, str):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(peer.address)
    else:
        connection = socket.create_connection(peer.address)
    connection.settimeout(20)
    return connection


def test_peer_follows_its_script_and_records_what_it_received(make_peer: Callable[..., ScriptedPeer]) -> None:
    script = [
        Expect(re.compile(rb"AUTH \S+ secret")),
        Send(b"AUTH-SUCCESS x\n"),
        Expect(b"DATA 5"),
        Read(5),
        Expect(b"VALID"),
        Send(b"SUCCESS\n"),
    ]
    with make_peer(script) as peer:
        for _ in range(2):
            with connect(peer) as connection:
                connection.sendall(b"AUTH me secret\nDATA 5\na\nb\0cVALID\n")
                assert connection.makefile("rb").read() == b"AUTH-SUCCESS x\nSUCCESS\n"
    assert peer.received == [b"AUTH me secret", b"DATA 5", b"VALID"] * 2
    assert peer.bodies == [b"a\nb\0c"] * 2
    assert peer.connections == 2


def test_peer_may_have_a_script_for_each_connection(make_peer: Callable[..., ScriptedPeer]) -> None:
    with make_peer(lambda number: [Send(b"%d\n" % number), Close()]) as peer:
        for number in range(3):
            with connect(peer) as connection:
                assert connection.makefile("rb").read() == b"%d\n" % number


@pytest.mark.parametrize(("said", "complaint"), [(b"HELLO\n", "got b'HELLO'"), (b"half", "closed, after b'half'")])
def test_peer_reports_unexpected_input(make_peer: Callable[..., ScriptedPeer], said: bytes, complaint: str) -> None:
    peer = make_peer([Expect(b"AUTH")]).__enter__()
    with connect(peer) as connection:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    with pytest.raises(AssertionError, match=f"connection 0, step 0, Expect.*{complaint}"):
        peer.__exit__(None, None, None)


def test_peer_stalls_until_the_other_side_closes_or_the_test_ends(
    make_peer: Callable[..., ScriptedPeer],
) -> None:
    with make_peer([Send(b"half a li"), Stall()]) as peer:
        with connect(peer) as connection:
            assert connection.recv(100) == b"half a li"
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(1)
        left = connect(peer)
        assert wait_until(lambda: peer.connections == 2)
    assert left.recv(100) in (b"half a li", b"")
    left.close()


def test_peer_sends_more_than_a_socket_holds_and_gives_up_on_a_closed_one(
    make_peer: Callable[..., ScriptedPeer],
) -> None:
    with make_peer([Send(b"x" * 20_000_000)]) as peer:
        with connect(peer) as connection:
            assert len(connection.makefile("rb").read()) == 20_000_000
        with connect(peer) as connection:
            assert connection.recv(1) == b"x"


def test_peer_drains_pauses_and_breaks_off(make_peer: Callable[..., ScriptedPeer]) -> None:
    with make_peer([Pause(0.2), Send(b"late\n"), Drain()]) as peer, connect(peer) as connection:
        began = time.monotonic()
        assert connection.recv(5) == b"late\n"
        assert time.monotonic() - began >= 0.15
        connection.sendall(b"x" * 5_000_000)
    with ScriptedPeer([Expect(b"go"), Reset()], tcp=True) as peer, connect(peer) as connection:
        connection.sendall(b"go\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_peer_needs_exactly_one_kind_of_socket(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="either"):
        ScriptedPeer([])
    with pytest.raises(ValueError, match="either"):
        ScriptedPeer([], unix=tmp_path / "s", tcp=True)


# Older versions


def converse(repository: Repository, said: bytes) -> list[bytes]:
    """Return the lines that git-annex-shell p2pstdio answers to a whole conversation."""
    done = repository.environment.run(
        *("git-annex-shell", "p2pstdio", repository.path, str(uuids.uuid4()), "--uuid", repository.uuid),
        input=said,
        check=False,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_limited_shell_agrees_on_no_later_version(environment: Environment, version: int) -> None:
    repository = make_repository(environment, environment.directory / "it", "it")
    greeting = f"AUTH-SUCCESS {repository.uuid}".encode()
    assert converse(repository, b"VERSION 4\n") == [greeting, b"VERSION 4"]
    limit_version(environment, version)
    assert converse(repository, b"VERSION 4\n") == [greeting, b"VERSION %d" % version]
    assert converse(repository, b"VERSION 1\n") == [greeting, b"VERSION 1"]


def test_shell_limited_to_version_0_does_not_know_version(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "it", "it")
    key = repository.add("f", b"data")
    limit_version(environment, 0)
    lines = converse(repository, f"VERSION 4\nCHECKPRESENT {key}\nGET 0 f {key}\n".encode())
    # In version 0 no VALID follows the DATA.
    assert lines == [
        f"AUTH-SUCCESS {repository.uuid}".encode(),
        b"ERROR unknown command",
        b"SUCCESS",
        b"DATA 4",
        b"data",
    ]


@pytest.mark.parametrize("version", [0, 3])
def test_limited_shell_leaves_bodies_alone(environment: Environment, version: int) -> None:
    """A body may look like a message, and may hold any bytes."""
    repository = make_repository(environment, environment.directory / "it", "it")
    body = b"VERSION 4\nVERSION 4\n" + bytes(range(256)) * 5000
    other = make_repository(environment, environment.directory / "other", "other")
    key = other.add("f", body)
    limit_version(environment, version)
    said = f"VERSION 4\nPUT f {key}\nDATA {len(body)}\n".encode() + body + (b"VALID\n" if version else b"")
    lines = converse(repository, said)
    assert lines[-2:] == [b"PUT-FROM 0", b"SUCCESS"]
    assert repository.object_bytes(key) == body


def test_limited_shell_passes_other_commands_and_exit_status_on(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "it", "it")
    limit_version(environment, 2)
    listed = environment.run("git-annex-shell", "configlist", repository.path).stdout.decode()
    assert f"annex.uuid={repository.uuid}\n" in listed
    missing = environment.directory / "missing"
    shell = environment.run(
        "git-annex-shell", "p2pstdio", missing, repository.uuid, "--uuid", repository.uuid, check=False
    )
    real = environment.run(
        *(environment.which("git-annex-shell"), "p2pstdio", missing, repository.uuid),
        *("--uuid", repository.uuid),
        check=False,
    )
    assert shell.returncode == real.returncode != 0
    assert shell.stderr == real.stderr


def test_scripted_shell_is_what_listens_on_a_socket(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "it", "it")
    path = environment.directory / "peer"
    wrong = str(uuids.uuid4())
    scripted_shell(environment, path)
    script = [*opening(wrong, version=2), Expect(b"hello"), Send(b"garbage\n")]
    with ScriptedPeer(script, unix=path) as peer:
        assert converse(repository, b"VERSION 4\nhello\n") == [
            f"AUTH-SUCCESS {wrong}".encode(),
            b"VERSION 2",
            b"garbage",
        ]
    assert peer.received == [b"VERSION 4", b"hello"]
    listed = environment.run("git-annex-shell", "configlist", repository.path).stdout
    assert repository.uuid.encode() in listed


def test_scripted_shell_that_stalls_ends_with_its_client(environment: Environment) -> None:
    path = environment.directory / "peer"
    scripted_shell(environment, path)
    with (
        ScriptedPeer([Send(b"half"), Stall()], unix=path),
        environment.popen("git-annex-shell", "p2pstdio") as shell,
    ):
        assert shell.stdin is not None
        assert shell.stdout is not None
        assert shell.stdout.read(4) == b"half"
        assert shell.poll() is None
        shell.stdin.close()
        assert shell.wait(10) == 0


def test_opening_expects_the_token_if_there_is_one(make_peer: Callable[..., ScriptedPeer]) -> None:
    uuid = str(uuids.uuid4())
    with make_peer(opening(uuid, token="a.b", version=3)) as peer, connect(peer) as connection:
        connection.sendall(f"AUTH {uuid} a.b\nVERSION 4\n".encode())
        assert connection.makefile("rb").read() == f"AUTH-SUCCESS {uuid}\nVERSION 3\n".encode()


def test_there_is_no_limit_beyond_version_3(environment: Environment) -> None:
    with pytest.raises(ValueError, match="version 4"):
        limit_version(environment, 4)


def test_a_module_can_have_its_own_environment(make_environment: Callable[[], Environment]) -> None:
    one, two = make_environment(), make_environment()
    assert one.directory != two.directory
    assert one.run(sys.executable, "-c", "print(1)").stdout == b"1\n"
