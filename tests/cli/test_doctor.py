"""doctor reports each fault made here, and the commands it prints repair it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster_remote.diagnosis.programs import Programs, problems_of_programs
from tests.cli.command import cluster_remote, told
from tests.remote.testbed import Testbed, initremote, make_testbed
from tests.support.environment import Environment
from tests.support.repositories import DESCRIPTIONS, Cluster, Repository
from tests.support.shells import limit_version
from tests.support.ssh import SshServer

# A program that lets every configuration pass, as others may do and this one did not always refuse all of them.
CARELESS = """\
#!/bin/sh
echo VERSION 1
while read -r word rest; do
    case $word in
    EXTENSIONS) echo EXTENSIONS ;;
    LISTCONFIGS) echo "CONFIG url the address"; echo CONFIGEND ;;
    INITREMOTE) echo INITREMOTE-SUCCESS ;;
    PREPARE) echo PREPARE-SUCCESS ;;
    EXPORTSUPPORTED) echo EXPORTSUPPORTED-FAILURE ;;
    *) echo UNSUPPORTED-REQUEST ;;
    esac
done
"""


@contextmanager
def careless(environment: Environment) -> Iterator[None]:
    """Have git-annex start a special remote that refuses nothing, for as long as the context is open."""
    program = environment.program("git-annex-remote-cluster", CARELESS)
    yield
    program.unlink()


@pytest.fixture
def full_testbed(environment: Environment) -> Testbed:
    """A healthy testbed for one test."""
    return make_testbed(environment, node_remotes=True)


def findings(where: Repository, *arguments: str, **options: Any) -> list[dict[str, Any]]:
    """Return doctor's findings, of which there must be some."""
    said = told(where, "doctor", *arguments, code=1, **options)
    assert said["healthy"] is False
    found: list[dict[str, Any]] = said["findings"]
    assert found
    return found


def only(found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Return the only finding, which must be of this kind."""
    assert [each["kind"] for each in found] == [kind], found
    return found[0]


def carry_out(where: Repository, finding: dict[str, Any]) -> None:
    """Run the commands of a remedy in a shell, as printed."""
    for command in finding["commands"]:
        where.environment.run("sh", "-c", command, cwd=where.path)


def healthy(where: Repository, *arguments: str, **options: Any) -> dict[str, Any]:
    """Return doctor's output, which must have no findings."""
    said = told(where, "doctor", *arguments, **options)
    assert said["healthy"] is True
    assert said["findings"] == []
    return said


# In order


def test_a_healthy_setup_has_no_findings(full_testbed: Testbed) -> None:
    inside = full_testbed.client.path / "folder"
    inside.mkdir()
    said = healthy(full_testbed.client, cwd=inside)
    assert said["repository"] == str(full_testbed.client.path)
    assert {server["remote"]: server["version"] for server in said["servers"]} == {
        "mycl": 4, "n1": 4, "n2": 4, "n3": 4,
    }  # fmt: skip
    programs = {program["name"]: program for program in said["programs"]}
    assert programs["git-annex"]["version"].startswith("10.")
    assert programs["annexremote"]["version"]
    assert programs["git-annex-shell"]["path"] == str(full_testbed.environment.which("git-annex-shell"))
    shown = cluster_remote(full_testbed.client, "doctor", "mycl").out
    assert "No problems found." in shown
    healthy(full_testbed.cluster.gateway)


def test_a_name_that_is_not_a_cluster_remote_is_wrong_usage(testbed: Testbed) -> None:
    done = cluster_remote(testbed.client, "doctor", "origin", code=2)
    assert "'origin' is not a cluster remote" in done.err


def test_a_newer_gateway_is_a_note_and_not_a_finding(full_testbed: Testbed) -> None:
    full_testbed.cluster.gateway.annex("describe", "here", "another name")
    full_testbed.cluster.gateway.annex("merge")
    said = healthy(full_testbed.client)
    assert any("git fetch origin" in note for note in said["notes"])
    full_testbed.client.git("fetch", "--quiet", "origin")
    assert healthy(full_testbed.client)["notes"] == []


def test_the_version_of_git_annex_over_ssh_is_shown(
    environment: Environment, cluster: Cluster, ssh_server: SshServer
) -> None:
    client = cluster.clone()
    initremote(client, "far", f"url={ssh_server.url(cluster.nodes[0].path)}", sameas=cluster.nodes[0].uuid)
    (server,) = healthy(client)["servers"]
    assert server["git_annex"].startswith("10.")


# Remotes


def test_a_special_remote_with_a_clusters_uuid_is_reported(full_testbed: Testbed) -> None:
    client, uuid = full_testbed.client, full_testbed.cluster.uuid
    client.annex("describe", uuid, 'it\'s the "family" photos')
    (full_testbed.environment.directory / "d").mkdir()
    place = f"directory={full_testbed.environment.directory}/d"
    client.annex("initremote", "bad", "type=directory", place, "encryption=none", f"uuid={uuid}")
    finding = only(findings(client), "made-with-uuid")
    assert finding["about"] == "bad"
    assert "uuid=" in finding["words"]
    carry_out(client, finding)
    notes = healthy(client)["notes"]
    assert any("nobody should enable it" in note for note in notes)
    assert 'it\'s the "family" photos [mycl]' in client.annex("info", "--fast").stdout.decode()


def test_a_remote_in_the_place_of_a_cluster_is_replaced(cluster: Cluster) -> None:
    client = cluster.clone()
    with careless(client.environment):
        initremote(client, "bad", f"url={cluster.gateway.path}", f"uuid={cluster.uuid}", private=False)
    finding = next(each for each in findings(client) if each["kind"] == "made-with-uuid")
    assert "cluster-remote setup bad-2" in finding["commands"][-1]
    carry_out(client, finding)
    healthy(client)
    client.add("stored", b"stored after all")
    client.annex("copy", "--to", "bad-2", "stored")
    assert cluster.holders(client.key("stored")) == [True] * 3


def test_a_remote_in_the_place_of_a_node_is_replaced(full_testbed: Testbed) -> None:
    client, node = full_testbed.client, full_testbed.cluster.nodes[1]
    with careless(client.environment):
        initremote(client, "bad", f"url={full_testbed.url}", f"uuid={node.uuid}", private=False)
    finding = only(findings(client), "made-with-uuid")
    carry_out(client, finding)
    healthy(client)
    assert DESCRIPTIONS[1] in client.annex("info", "--fast").stdout.decode()
    assert client.config("remote.bad-2.annex-config-uuid")


@pytest.mark.slow
def test_encryption_on_a_sameas_remote_of_a_cluster_is_reported(full_testbed: Testbed) -> None:
    client = full_testbed.client
    with careless(client.environment):
        initremote(client, "enc", f"url={full_testbed.url}", "encryption=shared", sameas=full_testbed.cluster.uuid)
    key = client.add("secret", b"not so secret")
    client.annex("copy", "--to", "enc", "secret")
    # In the clear, whatever the user meant, and nobody counts them.
    assert full_testbed.cluster.holders(key) == [True] * 3
    assert full_testbed.present(key) == set()
    finding = only(findings(client, "enc"), "encrypted")
    assert "encryption=shared" in finding["words"]
    assert "unencrypted" in finding["words"]
    carry_out(client, finding)
    healthy(client, "enc")
    # git-annex has been told the truth, that the content is there, so it copies nothing and records nothing.
    assert told(client, "repair", "enc", "secret")["healthy"]
    assert full_testbed.present(key) == full_testbed.nodes


@pytest.mark.slow
def test_a_sameas_remote_of_an_encrypted_node_is_reported(cluster: Cluster) -> None:
    gateway = cluster.gateway
    (gateway.environment.directory / "bucket").mkdir()
    place = f"directory={gateway.environment.directory}/bucket"
    gateway.annex("initremote", "bucket", "type=directory", place, "encryption=shared")
    gateway.git("config", "remote.bucket.annex-cluster-node", cluster.name)
    gateway.annex("updatecluster")
    client = cluster.clone()
    uuid = gateway.config("remote.bucket.annex-uuid")
    cluster_remote(client, "setup", "mycl", gateway.path)
    (note,) = healthy(client)["notes"]
    assert "git annex enableremote bucket" in note
    with careless(client.environment):
        initremote(client, "mycl-bucket", f"url={gateway.path}", sameas=uuid)
    client.git("config", "remote.mycl-bucket.annex-cost", "101")
    finding = next(each for each in findings(client) if each["kind"] == "encrypted")
    assert finding["about"] == "mycl-bucket"
    carry_out(client, finding)
    healthy(client)


@pytest.mark.slow
def test_an_unverified_remote_is_reported(cluster: Cluster) -> None:
    first = cluster.clone("first")
    initremote(first, "shared", f"url={cluster.gateway.path}", sameas=cluster.uuid, private=False)
    first.git("push", "--quiet", "origin", "git-annex:synced/git-annex")
    cluster.gateway.annex("merge")
    second = cluster.clone("second")
    second.annex("enableremote", "shared", "encryption=none")
    second.add("file", b"to be stored")
    assert second.annex("copy", "--to", "shared", "file", check=False).returncode != 0
    found = findings(second)
    finding = next(each for each in found if each["kind"] == "not-verified")
    assert f"url={cluster.gateway.path}" in finding["remedy"]
    carry_out(second, finding)
    assert "not-verified" not in [each["kind"] for each in findings(second)]
    second.annex("copy", "--to", "shared", "file")


@pytest.mark.slow
def test_a_configuration_changed_by_somebody_else_is_reported(cluster: Cluster) -> None:
    first = cluster.clone("first")
    initremote(first, "shared", f"url={cluster.nodes[0].path}", sameas=cluster.nodes[0].uuid, private=False)
    first.git("push", "--quiet", "origin", "git-annex:synced/git-annex")
    cluster.gateway.annex("merge")
    second = cluster.clone("second")
    second.annex("enableremote", "shared", "encryption=none")
    carry_out(second, only(findings(second), "not-verified"))
    healthy(second)
    # Of two lines of the same second, remote.log does not tell which is newer.
    time.sleep(1.1)
    first.annex("enableremote", "shared", "encryption=none", f"url={cluster.gateway.path}")
    first.git("push", "--quiet", "origin", "git-annex:synced/git-annex")
    cluster.gateway.annex("merge")
    second.git("fetch", "--quiet", "origin")
    finding = only(findings(second), "not-verified")
    assert "somebody changed" in finding["words"]
    assert f"url={cluster.gateway.path}" in finding["remedy"]
    carry_out(second, finding)
    healthy(second)


@pytest.mark.slow
def test_a_cluster_whose_nodes_were_never_fetched_is_reported(cluster: Cluster) -> None:
    gateway = cluster.gateway
    environment = gateway.environment
    history = gateway.git("log", "--reverse", "--format=%H", "git-annex", "--", "cluster.log").stdout.decode().split()
    environment.run("git", "init", "--quiet", "late")
    client = Repository(environment.directory / "late", environment)
    client.git("commit", "--quiet", "--allow-empty", "--message", "begin")
    client.annex("init", "--quiet", "late")
    client.git("remote", "add", "origin", gateway.path)
    gateway.git("config", "uploadpack.allowAnySHA1InWant", "true")
    # As the branch was after initcluster and before updatecluster.
    before = gateway.git("rev-parse", f"{history[0]}^").stdout.decode().strip()
    client.git("fetch", "--quiet", "origin", f"{before}:refs/remotes/origin/git-annex")
    with careless(environment):
        initremote(client, "mycl", f"url={gateway.path}", sameas=cluster.uuid)
    finding = only(findings(client), "cluster-unknown")
    carry_out(client, finding)
    finding = only(findings(client), "node-remotes-missing")
    assert all(description in finding["words"] for description in DESCRIPTIONS[:3])
    carry_out(client, finding)
    healthy(client)


@pytest.mark.slow
def test_nodes_without_remotes_are_reported_as_unverifiable(own_testbed: Testbed) -> None:
    client = own_testbed.client
    client.add("counted", b"counted")
    client.annex("copy", "--to", "mycl", "counted")
    assert client.annex("drop", "counted", check=False).returncode != 0
    finding = only(findings(client), "node-remotes-missing")
    carry_out(client, finding)
    healthy(client)
    client.annex("drop", "counted")


def test_a_node_as_cheap_as_its_cluster_is_reported(full_testbed: Testbed) -> None:
    full_testbed.client.git("config", "remote.n2.annex-cost", "100")
    finding = only(findings(full_testbed.client), "cost")
    assert finding["about"] == "n2"
    carry_out(full_testbed.client, finding)
    healthy(full_testbed.client)


def test_a_serverless_cluster_costlier_than_its_nodes_is_reported(cluster: Cluster) -> None:
    gateway = cluster.gateway
    cluster_remote(gateway, "setup", "all", "--cluster", cluster.name)
    healthy(gateway)
    gateway.git("config", "remote.node2.annex-cost", "40")
    finding = only(findings(gateway), "cost")
    assert "uploads" in finding["words"]
    carry_out(gateway, finding)
    assert gateway.config("remote.all.annex-cost") == "39"
    healthy(gateway)


def test_a_missing_node_is_reported(full_testbed: Testbed) -> None:
    node = full_testbed.cluster.nodes[0]
    uuid = node.uuid
    with node.unplugged():
        finding = only(findings(full_testbed.client), "unreachable")
        assert finding["about"] == "n1"
        assert DESCRIPTIONS[0] in finding["words"]
        assert finding["commands"] == ["cluster-remote ping n1"]
        # Nobody is told to declare it dead, but who does is not told of it any more.
        full_testbed.client.annex("dead", uuid)
        healthy(full_testbed.client)
        full_testbed.client.annex("semitrust", uuid)
    carry_out(full_testbed.client, finding)
    healthy(full_testbed.client)


def test_a_node_removed_from_the_cluster_is_reported(full_testbed: Testbed) -> None:
    gateway, client = full_testbed.cluster.gateway, full_testbed.client
    gateway.git("config", "--unset", "remote.node1.annex-cluster-node")
    gateway.annex("updatecluster")
    (problem,) = told(client, "status", "mycl", code=1)["clusters"][0]["problems"]
    assert problem["kind"] == "node-removed"
    for command in problem["commands"]:
        client.environment.run("sh", "-c", command, cwd=client.path)
    finding = only(findings(client), "node-removed")
    assert finding["about"] == "n1"
    carry_out(client, finding)
    healthy(client)


@pytest.mark.slow
def test_a_disk_with_another_uuid_in_place_of_a_node_is_reported(cluster: Cluster) -> None:
    gateway, (first, *_) = cluster.gateway, cluster.nodes
    initremote(gateway, "own", sameas=cluster.uuid)
    gateway.git("config", "remote.own.annex-cost", "50")
    first.path.rename(first.path.with_name("old"))
    gateway.environment.run("git", "clone", "--quiet", gateway.path, first.path)
    new = Repository(first.path, gateway.environment)
    new.annex("init", "--quiet", "new disk")
    gateway.annex("info", "--fast")
    for arguments in (("doctor",), ("doctor", "own")):
        finding = only(findings(gateway, *arguments[1:]), "node-replaced")
        assert finding["about"] == "node1"
        assert DESCRIPTIONS[0] in finding["words"]
    said = told(gateway, "status", "own", code=1)["clusters"][0]
    assert [problem["kind"] for problem in said["problems"]] == ["node-replaced"]
    assert {node["description"]: node["remote"] for node in said["nodes"]}[DESCRIPTIONS[0]] is False
    carry_out(gateway, finding)
    assert told(gateway, "status", "own")["well"]


def test_a_missing_gateway_is_reported(own_testbed: Testbed) -> None:
    own_testbed.cluster.gateway.path.rename(own_testbed.environment.directory / "away")
    found = findings(own_testbed.client, "mycl")
    finding = next(each for each in found if each["kind"] == "unreachable")
    assert finding["commands"] == ["cluster-remote ping mycl"]
    cluster_remote(own_testbed.client, "ping", "mycl", code=3)


def test_a_gateway_that_cannot_name_its_nodes_is_reported(full_testbed: Testbed) -> None:
    shim = limit_version(full_testbed.environment, 1)
    found = findings(full_testbed.client)
    assert {each["kind"] for each in found if each["about"] == "mycl"} == {"old-protocol"}
    shim.unlink()
    healthy(full_testbed.client)


@pytest.mark.slow
def test_leftovers_of_a_refused_initremote_are_reported(full_testbed: Testbed) -> None:
    client = full_testbed.client
    nowhere = f"url={full_testbed.environment.directory}/nowhere"
    assert initremote(client, "odd", nowhere, sameas=full_testbed.cluster.uuid, check=False).returncode != 0
    finding = only(findings(client), "left-over")
    assert finding["about"] == "odd"
    carry_out(client, finding)
    healthy(client)


def test_unusable_parameters_are_reported(full_testbed: Testbed) -> None:
    client = full_testbed.client
    with careless(client.environment):
        initremote(client, "odd", "url=gopher://nowhere", sameas=full_testbed.cluster.uuid)
    finding = only(findings(client, "odd"), "settings-unusable")
    assert "gopher" in finding["words"]


# The repository as a gateway


def test_a_node_of_a_nonexistent_cluster_is_reported(cluster: Cluster) -> None:
    cluster.gateway.git("config", "remote.node3.annex-cluster-node", "other")
    found = findings(cluster.gateway)
    assert [each["kind"] for each in found] == ["no-such-cluster", "node-not-configured"]
    carry_out(cluster.gateway, found[0])
    healthy(cluster.gateway)


def test_a_node_missing_from_cluster_log_is_reported(cluster: Cluster) -> None:
    gateway = cluster.gateway
    gateway.git("config", "--unset", "remote.node2.annex-cluster-node")
    gateway.annex("updatecluster")
    healthy(gateway)
    gateway.git("config", "remote.node2.annex-cluster-node", cluster.name)
    finding = only(findings(gateway), "node-not-listed")
    assert finding["about"] == "node2"
    carry_out(gateway, finding)
    healthy(gateway)


def test_a_node_missing_from_the_configuration_is_reported(cluster: Cluster) -> None:
    gateway = cluster.gateway
    gateway.git("config", "--unset", "remote.node2.annex-cluster-node")
    finding = only(findings(gateway), "node-not-configured")
    assert (finding["about"], DESCRIPTIONS[1] in finding["words"]) == ("node2", True)
    carry_out(gateway, finding)
    healthy(gateway)
    assert gateway.config("remote.node2.annex-cluster-node") == cluster.name


def test_a_node_whose_remote_was_removed_is_reported(cluster: Cluster) -> None:
    gateway = cluster.gateway
    gateway.git("remote", "remove", "node2")
    finding = only(findings(gateway), "node-without-remote")
    assert DESCRIPTIONS[1] in finding["words"]
    # To take it out of the cluster concerns everybody, so that no command is offered for it.
    assert finding["commands"] == []
    assert f"cluster-remote node remove {cluster.name} {cluster.nodes[1].uuid}" in finding["remedy"]
    gateway.annex("updatecluster")
    healthy(gateway)
    assert DESCRIPTIONS[1] not in gateway.annex("info", cluster.uuid, check=False).stdout.decode()


def test_a_node_unknown_to_git_annex_is_reported(cluster: Cluster) -> None:
    gateway = cluster.gateway
    gateway.environment.run("git", "clone", "--quiet", gateway.path, "node4")
    fourth = Repository(gateway.path.with_name("node4"), gateway.environment)
    fourth.annex("init", "--quiet", "a fourth")
    gateway.git("remote", "add", "node4", fourth.path)
    gateway.git("config", "remote.node4.annex-cluster-node", cluster.name)
    with fourth.unplugged():
        finding = only(findings(gateway), "node-unknown")
    assert finding["about"] == "node4"
    carry_out(gateway, finding)
    healthy(gateway)


def test_a_branch_that_was_never_fetched_is_reported(cluster: Cluster) -> None:
    client = cluster.clone()
    client.git("remote", "add", "disk", cluster.nodes[0].path)
    finding = only(findings(client), "not-fetched")
    assert finding["about"] == "disk"
    carry_out(client, finding)
    healthy(client)


def test_secrets_readable_by_others_are_reported(full_testbed: Testbed) -> None:
    client = full_testbed.client
    cluster_remote(client, "token", "create")
    tokens = client.path / ".git/cluster-remote/tokens"
    creds = client.path / ".git/annex/creds/some credential"
    creds.parent.mkdir(exist_ok=True)
    creds.write_text("user\npassword\n")
    for file in (tokens, creds):
        file.chmod(0o644)
    found = findings(client)
    assert [(each["kind"], each["about"]) for each in found] == [
        ("readable-by-others", str(creds)),
        ("readable-by-others", str(tokens)),
    ]
    for finding in found:
        carry_out(client, finding)
    healthy(client)


# Programs


def doctor_with_path(repository: Repository, path: str, code: int) -> dict[str, Any]:
    program = str(repository.environment.which("cluster-remote"))
    done = repository.environment.run(program, "doctor", "--json", cwd=repository.path, env={"PATH": path}, check=False)
    assert done.returncode == code, done
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def path_after(command: str, path: str) -> str:
    """What PATH is after an `export PATH=…` that was printed."""
    assert command.startswith("export PATH=")
    shell = shutil.which("sh")
    assert shell is not None
    done = subprocess.run(
        [shell, "-c", f'{command}; printf %s "$PATH"'], env={"PATH": path}, capture_output=True, check=True
    )
    return done.stdout.decode()


def test_programs_installed_but_not_on_path_are_reported(full_testbed: Testbed) -> None:
    """As in a virtual environment that nobody has activated."""
    bare = full_testbed.environment.directory / "bare"
    bare.mkdir()
    git = shutil.which("git")
    assert git is not None
    (bare / "git").symlink_to(git)
    path = f"{bare}:/usr/bin:/bin"
    said = doctor_with_path(full_testbed.client, path, 1)
    assert {each["about"] for each in said["findings"]} == {
        "git-annex", "git-annex-shell", "git-annex-remote-cluster",
    }  # fmt: skip
    mended = path_after(said["findings"][0]["commands"][0], path)
    assert mended.startswith(str(Path(sys.executable).parent))
    assert doctor_with_path(full_testbed.client, mended, 0)["healthy"] is True


def test_two_installations_are_reported(full_testbed: Testbed) -> None:
    environment = full_testbed.environment
    real = environment.which("git-annex-shell")
    environment.program("git-annex-shell", f'#!/bin/sh\nexec {shlex.quote(str(real))} "$@"\n')
    finding = only(findings(full_testbed.client), "program-elsewhere")
    assert (finding["about"], str(real.parent) in finding["commands"][0]) == ("git-annex-shell", True)
    mended = path_after(finding["commands"][0], environment.env["PATH"])
    healthy(full_testbed.client, env={"PATH": mended})


def test_another_version_of_this_program_earlier_on_path_is_reported(full_testbed: Testbed) -> None:
    environment = full_testbed.environment
    real = environment.which("git-annex-remote-cluster")
    environment.program(
        "git-annex-remote-cluster",
        f'#!/bin/sh\ntest "$1" = --version && echo git-annex-remote-cluster 0.0.1 && exit\nexec {real} "$@"\n',
    )
    finding = only(findings(full_testbed.client), "program-elsewhere")
    assert "0.0.1" in finding["words"]
    healthy(full_testbed.client, env={"PATH": path_after(finding["commands"][0], environment.env["PATH"])})


def test_a_git_annex_without_cluster_support_is_reported(full_testbed: Testbed) -> None:
    environment = full_testbed.environment
    real = environment.which("git-annex")
    directory = environment.bin
    environment.program(
        "git-annex", f'#!/bin/sh\ntest "$*" = "version --raw" && printf 8.20210223 && exit\nexec {real} "$@"\n'
    )
    shell = environment.which("git-annex-shell")
    environment.program("git-annex-shell", f'#!/bin/sh\nexec {shell} "$@"\n')
    finding = only(findings(full_testbed.client), "program-old")
    assert "8.20210223" in finding["words"]
    (directory / "git-annex").unlink()
    (directory / "git-annex-shell").unlink()
    healthy(full_testbed.client)


def test_outside_a_repository_only_the_programs_are_checked(environment: Environment) -> None:
    said = told(environment, "doctor", code=4)
    assert (said["healthy"], said["repository"]) == (True, None)
    assert "not a git-annex repository" in cluster_remote(environment, "doctor", code=4).out
    assert "no usable git repository" in cluster_remote(environment, "doctor", "mycl", code=4).err
    environment.run("git", "init", "--quiet", "plain")
    cluster_remote(environment, "doctor", "mycl", code=4, cwd=environment.directory / "plain")
    # Looking has not made a repository of git-annex out of it.
    assert not (environment.directory / "plain/.git/annex").exists()


def test_a_missing_program_is_reported_with_how_to_install_it() -> None:
    found = list(problems_of_programs(Programs({}, {}, Path("/venv/bin")), needs_ssh=True))
    assert {each.about for each in found} == {
        "git", "git-annex", "git-annex-shell", "git-annex-remote-cluster", "ssh",
    }  # fmt: skip
    for each in found:
        (command,) = each.commands
        assert "install" in command
    assert not [
        each for each in problems_of_programs(Programs({}, {}, Path("/x")), needs_ssh=False) if each.about == "ssh"
    ]


@pytest.mark.slow
def test_contents_git_annex_will_not_get_are_noted(full_testbed: Testbed) -> None:
    client = full_testbed.client
    client.write("old", b"no checksum\n")
    client.annex("add", "--backend=WORM", "old")
    client.annex("copy", "--to", "mycl", "old")
    (note,) = (note for note in healthy(client)["notes"] if "without a checksum" in note)
    command = note[note.index("git config") :]
    client.annex("drop", "--force", "old")
    assert client.annex("get", "--from", "mycl", "old", check=False).returncode != 0
    client.environment.run("sh", "-c", command, cwd=client.path)
    client.annex("get", "--from", "mycl", "old")
    assert not any("without a checksum" in note for note in healthy(client)["notes"])


def test_doctor_changes_nothing(environment: Environment) -> None:
    testbed = make_testbed(environment)
    testbed.client.git("config", "remote.mycl.annex-cost", "100")
    config = (testbed.client.path / ".git/config").read_bytes()
    refs = testbed.client.git("for-each-ref").stdout
    findings(testbed.client)
    assert (testbed.client.path / ".git/config").read_bytes() == config
    assert testbed.client.git("for-each-ref").stdout == refs
    assert [file.name for file in testbed.client.path.iterdir()] == [".git"]
