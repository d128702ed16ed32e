"""The special remote over HTTP, TLS, SOCKS, sockets and a P2P network: everything that git-annex asks of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_remote.p2p.server import Mode
from tests.gateway.gateways import gateway_of
from tests.remote.testbed import Testbed, initremote, messages
from tests.remote.ways import WAYS, Way, opened
from tests.support.certificates import make_certificate
from tests.support.environment import Environment
from tests.support.processes import end_group, wait_until
from tests.support.repositories import Cluster
from tests.support.slow import only_in_all
from tests.support.sockets import free_port, serve_p2phttp


@pytest.fixture(params=[WAYS[0], *only_in_all(*WAYS[1:])])
def way(request: pytest.FixtureRequest, environment: Environment) -> Iterator[tuple[Way, Testbed]]:
    with opened(request.param, environment) as made:
        yield made


@pytest.mark.slow
def test_files_are_stored_on_every_node_retrieved_and_dropped(way: tuple[Way, Testbed]) -> None:
    _, testbed = way
    content = os.urandom(300_000)
    key = testbed.client.add("photo.jpg", content)
    testbed.client.annex("copy", "--quiet", "--to", "mycl", "photo.jpg")
    assert testbed.cluster.holders(key) == [True] * 3
    assert testbed.present(key) == testbed.nodes
    testbed.client.annex("drop", "--quiet", "--force", "photo.jpg")
    testbed.client.leave_partial(key, content[:100_000])
    testbed.client.annex("get", "--quiet", "--from", "mycl", "photo.jpg")
    assert testbed.client.object_bytes(key) == content
    testbed.client.annex("fsck", "--quiet", "--from", "mycl", "photo.jpg")
    testbed.client.annex("drop", "--quiet", "--from", "mycl", "photo.jpg")
    assert testbed.cluster.holders(key) == [False] * 3
    assert not testbed.present(key)


@pytest.mark.slow
def test_many_files_at_once_with_jobs(way: tuple[Way, Testbed]) -> None:
    _, testbed = way
    keys = [testbed.client.add(f"f{number}", os.urandom(1000)) for number in range(8)]
    testbed.client.annex("copy", "--quiet", "-J4", "--to", "mycl", ".")
    assert all(testbed.cluster.holders(key) == [True] * 3 for key in keys)
    testbed.client.annex("drop", "--quiet", "--force", ".")
    testbed.client.annex("get", "--quiet", "-J4", "--from", "mycl", ".")
    assert all(testbed.client.has_object(key) for key in keys)


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["client", "server"])
def test_killed_transfers_resume_in_both_directions(way: tuple[Way, Testbed], killed: str) -> None:
    server, testbed = way
    content = os.urandom(80_000_000)
    key = testbed.client.add("film", content)
    at_nodes = [node.path / ".git/annex/tmp" / key for node in testbed.cluster.nodes]
    here = testbed.client.path / ".git/annex/tmp" / key

    def broken_off(parts: list[Path], *command: str) -> None:
        """Kill a transfer, or its server, once some of it has come."""
        transfer = testbed.environment.popen(
            *("git", "annex", *command), cwd=testbed.client.path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        begun = wait_until(lambda: transfer.poll() is not None or min(map(_size, parts)) > 4_000_000, 60)
        if killed == "client":
            end_group(transfer.pid)
            # git's child, git-annex, holds a lock on the transfer as long as it lives.
            assert wait_until(lambda: not any("film" in each.command for each in testbed.environment.processes()), 20)
        else:
            server.kill()
        assert transfer.wait(60) != 0
        assert begun
        assert 4_000_000 < min(map(_size, parts)) < len(content), "it was killed in the middle"
        if killed == "server":
            server.start()
        elif server.is_git_annex:
            # Else it may answer 500 to whoever uploads the same content, git-annex's own client too.
            server.stop()
            server.start()

    def goes_on(*command: str) -> int:
        """Do it again; from which byte on."""
        said = messages(testbed.client.annex(*command, "film", "--debug"))
        return next(int(words[2]) for each in said if (words := each.split())[1] in ("PUT-FROM", "GET"))

    broken_off(at_nodes, "copy", "--to", "mycl", "film")
    assert testbed.cluster.holders(key) == [False] * 3
    assert testbed.present(key) == set()
    assert goes_on("copy", "--to", "mycl") > 1_000_000
    assert testbed.present(key) == testbed.nodes
    assert all(node.object_bytes(key) == content for node in testbed.cluster.nodes)
    testbed.client.annex("drop", "--quiet", "--force", "film")
    broken_off([here], "get", "--from", "mycl", "film")
    assert goes_on("get", "--from", "mycl") > 1_000_000
    assert testbed.client.object_bytes(key) == content


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_server_restarted_between_two_files_is_no_problem(way: tuple[Way, Testbed]) -> None:
    server, testbed = way
    keys = [testbed.client.add(f"f{number}", os.urandom(1000)) for number in (1, 2)]
    copy = testbed.environment.popen("git", "annex", "copy", "--to", "mycl", "--batch", cwd=testbed.client.path)
    assert copy.stdin is not None
    copy.stdin.write(b"f1\n")
    copy.stdin.flush()
    # It is recorded when the server has answered.
    assert wait_until(lambda: testbed.present(keys[0]) == testbed.nodes, 30)
    server.stop()
    server.start()
    copy.communicate(b"f2\n", 60)
    assert copy.returncode == 0
    assert testbed.cluster.holders(keys[1]) == [True] * 3
    assert testbed.present(keys[1]) == testbed.nodes


@pytest.mark.slow
def test_git_annex_tests_it(way: tuple[Way, Testbed]) -> None:
    _, testbed = way
    done = testbed.client.annex("testremote", "mycl", "--size=99", timeout=280, check=False)
    assert done.returncode == 0, done.stdout.decode()[-3000:]


@pytest.mark.slow
def test_git_annex_tests_a_single_repository_behind_its_own_server(cluster: Cluster) -> None:
    client, node = cluster.clone(), cluster.nodes[0]
    with serve_p2phttp(node) as port:
        initremote(client, "one", f"url=annex+http://localhost:{port}/git-annex/", sameas=node.uuid)
        done = client.annex("testremote", "one", "--size=99", timeout=280, check=False)
        assert done.returncode == 0, done.stdout.decode()[-3000:]


def test_an_untrusted_certificate_is_refused_with_the_reason_until_trusted(cluster: Cluster) -> None:
    environment, client, port = cluster.gateway.environment, cluster.clone(), free_port()
    certificate, key = make_certificate(environment)
    options = ("--listen", f"tls://127.0.0.1:{port}", "--certificate", str(certificate), "--key", str(key))
    with gateway_of(cluster, *options) as gateway:
        token = {"CLUSTER_REMOTE_TOKEN": gateway.tokens[Mode.READ_WRITE]}
        url = f"url=tls://localhost:{port}"
        done = initremote(client, "mycl", url, sameas=cluster.uuid, check=False, env=token)
        assert done.returncode == 1
        assert b"its certificate is not trusted" in done.stdout + done.stderr
        assert b"http.sslCAInfo" in done.stdout + done.stderr
        # The gateway takes a new certificate without an end of its connections.
        certificate, _ = make_certificate(environment)
        gateway.process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: "certificate reloaded" in gateway.log.read_text())
        environment.run("git", "config", "--global", "http.sslCAInfo", certificate)
        initremote(client, "mycl", url, sameas=cluster.uuid, env=token)


def test_a_login_is_taken_from_gits_credential_helpers(cluster: Cluster) -> None:
    environment, client = cluster.gateway.environment, cluster.clone()
    key = client.add("photo.jpg", b"photo")
    asked = environment.directory / "asked"
    environment.run(
        "git", "config", "--global", "credential.helper",
        f"!f() {{ echo $1 >>{asked}; cat >>{asked}; test $1 = get && echo username=ada && echo password=right; }}; f",
    )  # fmt: skip
    secrets = {"GIT_ANNEX_P2PHTTP_PASSWORD_ada": "right"}
    with serve_p2phttp(cluster.gateway, "--authenv-http", env=secrets) as port:
        url = f"annex+http://localhost:{port}/git-annex/"
        initremote(client, "mycl", f"url={url}", sameas=cluster.uuid)
        client.annex("copy", "--quiet", "--to", "mycl", "photo.jpg")
    assert cluster.holders(key) == [True] * 3
    said = asked.read_text()
    assert f"host=localhost:{port}" in said
    assert "protocol=annex+http" in said
    assert "path=git-annex" in said
    assert "store" in said, "the helper is told that the login was taken"
