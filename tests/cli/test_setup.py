"""cluster-remote setup makes a remote for a cluster."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.forked import run_forked
from tests.support.repositories import Cluster, Repository


def setup(client: Repository, *arguments: str, check: bool = True, code: int = 0, **options: object) -> str:
    """Run the command in a repository; return everything it wrote. The exit code must be `code`."""
    done = run_forked(client.environment, "setup", *arguments, cwd=client.path, check=False, timeout=120)
    text = os.fsdecode(done.stdout + done.stderr)
    assert done.returncode == code, text
    assert "Traceback" not in text
    return text


def commands(text: str) -> list[str]:
    """Return the commands it says it ran."""
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


@pytest.fixture
def gateway(cluster: Cluster) -> str:
    return str(cluster.gateway.path)


def test_one_command_makes_a_remote_whose_copies_count(cluster: Cluster, client: Repository, gateway: str) -> None:
    text = setup(client, "mycl", gateway)
    assert commands(text)[0].startswith(f"git annex initremote mycl --sameas={cluster.uuid} --private type=external")
    key = client.add("f", b"content")
    client.annex("copy", "--to", "mycl", "f")
    assert cluster.holders(key) == [True, True, True]
    client.annex("numcopies", "3")
    client.annex("drop", "f")
    client.annex("get", "f")
    assert client.object_bytes(key) == b"content"
    assert client.annex("drop", "--numcopies=4", "f", check=False).returncode != 0


def test_every_node_gets_a_slightly_costlier_remote_excluded_from_sync(
    cluster: Cluster, client: Repository, gateway: str
) -> None:
    setup(client, "mycl", gateway)
    cost = float(client.config("remote.mycl.annex-cost") or 0)
    for number, node in enumerate(cluster.nodes, 1):
        assert client.config(f"remote.mycl-node{number}.annex-uuid") == node.uuid
        assert client.config(f"remote.mycl-node{number}.annex-sync") == "false"
        assert float(client.config(f"remote.mycl-node{number}.annex-cost") or 0) > cost


@pytest.mark.slow
def test_nothing_is_shared_without_share(client: Repository, gateway: str) -> None:
    setup(client, "mycl", gateway)
    assert client.git("ls-tree", "--name-only", "git-annex", "remote.log").stdout == b""
    setup(client, "shared", gateway, "--share", "--no-nodes")
    log = client.git("show", "git-annex:remote.log").stdout
    assert b"sameas-name=shared" in log
    assert b"mycl" not in log


@pytest.mark.slow
def test_an_unavailable_node_does_not_stop_the_others_being_verified(
    cluster: Cluster, client: Repository, gateway: str
) -> None:
    node = cluster.nodes[1]
    uuid = node.uuid
    with node.unplugged():
        text = setup(client, "mycl", gateway, code=1)
        assert "no remote for second disk (cellar)" in text
        assert "mycl-node2" not in os.fsdecode(client.git("remote").stdout).split()
        assert {"mycl-node1", "mycl-node3"} <= set(os.fsdecode(client.git("remote").stdout).split())
        client.annex("dead", uuid)
        assert commands(setup(client, "mycl", gateway)) == []
        client.annex("semitrust", uuid)
    setup(client, "mycl", gateway)
    assert client.config("remote.mycl-node2.annex-uuid") == uuid


def test_no_nodes_makes_only_the_clusters_remote(client: Repository, gateway: str) -> None:
    setup(client, "mycl", gateway, "--no-nodes")
    assert os.fsdecode(client.git("remote").stdout).split() == ["mycl", "origin"]


@pytest.mark.slow
def test_running_it_again_changes_nothing(client: Repository, gateway: str) -> None:
    setup(client, "mycl", gateway)
    before = client.git("config", "--list", "--local").stdout
    assert commands(setup(client, "mycl", gateway)) == []
    assert client.git("config", "--list", "--local").stdout == before


@pytest.mark.slow
def test_a_changed_parameter_is_applied_and_verified(client: Repository, gateway: str) -> None:
    setup(client, "mycl", gateway, "--no-nodes")
    ran = commands(setup(client, "mycl", gateway, "--no-nodes", "--timeout", "17"))
    assert ran[0].startswith("git annex enableremote mycl")
    assert ran[1].startswith("git annex verifyremote mycl --safe ")
    assert b"timeout=17" in client.annex("verifyremote", "mycl", check=False).stdout + b"timeout=17"
    key = client.add("f", b"after the change")
    done = client.annex("copy", "--to", "mycl", "f")
    assert client.locations(key), os.fsdecode(done.stderr)


@pytest.mark.slow
def test_a_shared_remote_is_enabled_and_verified(cluster: Cluster, gateway: str) -> None:
    first, second = cluster.clone("first"), cluster.clone("second")
    setup(first, "mycl", gateway, "--share", "--no-nodes")
    first.git("push", "-q", "origin", "git-annex")
    second.git("fetch", "-q", "origin")
    second.annex("merge")
    ran = commands(setup(second, "mycl", gateway, "--share", "--no-nodes"))
    assert ran[0].startswith("git annex enableremote mycl encryption=none")
    assert ran[1].startswith("git annex verifyremote mycl --safe ")
    key = second.add("f", b"from the second clone")
    second.annex("copy", "--to", "mycl", "f")
    assert cluster.holders(key) == [True, True, True]


@pytest.mark.slow
def test_a_remote_of_its_own_uuid_counts_as_one_encrypted_copy(
    cluster: Cluster, client: Repository, gateway: str
) -> None:
    setup(client, "own", gateway, "--tracking", "remote", "--encryption", "shared", "--chunk", "1MiB", "--cluster",
          cluster.name)  # fmt: skip
    key = client.add("f", b"secret")
    client.annex("copy", "--to", "own", "f")
    assert client.locations(key) == {client.uuid, client.config("remote.own.annex-uuid")}
    assert cluster.holders(key) == [False, False, False]
    client.annex("drop", "f")
    client.annex("get", "f")
    assert client.object_bytes(key) == b"secret"


@pytest.mark.slow
def test_a_cluster_not_yet_fetched_is_fetched(cluster: Cluster, client: Repository, gateway: str) -> None:
    stranger = Repository(client.path.parent / "stranger", client.environment)
    stranger.path.mkdir()
    stranger.git("init", "-q")
    stranger.annex("init", "stranger")
    text = setup(stranger, "mycl", gateway, code=2)
    assert f"git fetch {gateway} +refs/heads/git-annex:refs/remotes/mycl-gateway/git-annex" in text
    stranger.git("remote", "add", "gw", gateway)
    # git-annex learns the UUID of the remote; nothing is fetched yet.
    stranger.annex("info", "--fast")
    text = setup(stranger, "mycl", gateway)
    assert commands(text)[0] == "git fetch -- gw +refs/heads/git-annex:refs/remotes/gw/git-annex"
    assert stranger.config("remote.mycl.annex-uuid") == cluster.uuid


def test_several_clusters_need_an_explicit_choice(cluster: Cluster, client: Repository, gateway: str) -> None:
    cluster.gateway.annex("initcluster", "second")
    cluster.gateway.git("config", "--add", "remote.node1.annex-cluster-node", "second")
    cluster.gateway.annex("updatecluster")
    client.git("fetch", "-q", "origin")
    text = setup(client, "mycl", gateway, code=2)
    assert "--cluster: mycluster, second" in text
    assert "has no such cluster" in setup(client, "mycl", gateway, "--cluster", "third", code=2)
    setup(client, "mycl", gateway, "--cluster", "mycluster", "--no-nodes")
    assert client.config("remote.mycl.annex-uuid") == cluster.uuid


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["mycl", "GATEWAY", "--node", "origin"], 2, "give either the URL"),
        (["mycl", "GATEWAY", "--tracking", "both"], 2, "choose nodes or remote"),
        (["mycl", "GATEWAY", "--encryption", "shared"], 2, "add --tracking remote"),
        (["mycl", "GATEWAY", "--chunk", "1MiB"], 2, "add --tracking remote"),
        (["mycl", "tcp://user:secret@localhost:1"], 2, "CLUSTER_REMOTE_TOKEN"),
        (["mycl", "tcp://localhost:1"], 2, "wants a token"),
        (["mycl", "GATEWAY-that-is-not-there"], 3, "connecting"),
        (["origin", "GATEWAY"], 2, "already has a remote 'origin' of another kind"),
        (["mycl", "--node", "nosuch"], 2, "no such remote"),
    ],
)
def test_impossible_requests_are_refused_and_nothing_is_made(
    client: Repository, gateway: str, arguments: list[str], code: int, said: str
) -> None:
    before = client.git("config", "--list", "--local").stdout
    text = setup(client, *(word.replace("GATEWAY", gateway) for word in arguments), code=code)
    assert said in text
    assert "secret" not in text
    assert client.git("config", "--list", "--local").stdout == before


def test_setup_works_from_a_subdirectory(cluster: Cluster, client: Repository, gateway: str) -> None:
    below = client.path / "below"
    below.mkdir()
    run_forked(client.environment, "setup", "mycl", gateway, "--no-nodes", cwd=below)
    assert client.config("remote.mycl.annex-uuid") == cluster.uuid


def test_setup_outside_a_repository_says_so(client: Repository, gateway: str, tmp_path: Path) -> None:
    done = run_forked(client.environment, "setup", "mycl", gateway, cwd=tmp_path, check=False)
    assert done.returncode == 4
    assert b"no usable git repository" in done.stderr


def test_setup_without_git_annex_says_so(client: Repository, gateway: str, tmp_path: Path) -> None:
    client.environment.program("git-annex", "#!/bin/sh\necho out of order >&2\nexit 1\n")
    text = setup(client, "mycl", gateway, code=1)
    assert "out of order" in text
    shutil.rmtree(tmp_path)
