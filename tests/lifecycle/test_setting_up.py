"""cluster-remote setup without a server: planned, checked, undone if it fails; joined from other clones."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.lifecycle.conftest import cluster_remote, failing, members, second_computer, state
from tests.support.forked import popen_forked
from tests.support.processes import end_group
from tests.support.repositories import Cluster, Repository
from tests.support.slow import only_in_all


def test_a_second_cluster_of_the_same_nodes_leaves_the_first_unchanged(cluster: Cluster, work: Repository) -> None:
    cluster_remote(work, "setup", "offsite", "--node", "node1", "--node", "node2")
    assert work.config("remote.node1.annex-cluster-node") == "mycluster offsite"
    assert members(work, cluster.uuid) == {node.uuid for node in cluster.nodes}
    assert members(work, work.config("annex.cluster.offsite")) == {node.uuid for node in cluster.nodes[:2]}


def test_a_dry_run_shows_the_commands_and_changes_nothing(work: Repository) -> None:
    before = state(work)
    text = cluster_remote(work, "setup", "offsite", "--node", "node1", "--dry-run")
    assert "git annex initcluster offsite" in text
    assert "git annex initremote offsite '--sameas=" in text or "--sameas=$(git config annex.cluster.offsite)" in text
    assert state(work) == before


@pytest.mark.parametrize("command", ["initremote", *only_in_all("initcluster", "updatecluster")])
def test_a_failed_step_undoes_those_before_it(work: Repository, command: str) -> None:
    before = state(work)
    failing(work.environment, command)
    text = cluster_remote(work, "setup", "offsite", "--node", "node1", "--node", "node2", code=1)
    assert "out of order" in text
    assert state(work) == before
    work.environment.program("git-annex", f'#!/bin/sh\nexec {work.environment.which("git-annex")} "$@"\n')
    # The name is not burnt.
    cluster_remote(work, "setup", "offsite", "--node", "node1", "--node", "node2")


@pytest.mark.parametrize("number", [signal.SIGTERM, *only_in_all(signal.SIGINT)])
def test_an_interrupt_ends_the_running_command_and_undoes_the_steps_before(
    work: Repository, tmp_path: Path, number: signal.Signals
) -> None:
    before = state(work)
    failing(work.environment, "updatecluster", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    process = popen_forked(work.environment, "cluster-remote", "setup", "offsite", "--node", "node1", cwd=work.path)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, number)
        process.communicate(timeout=30)
    finally:
        end_group(process.pid)
    assert process.returncode == 130
    assert state(work) == before


def test_a_node_git_annex_cannot_use_is_refused_before_anything_changes(work: Repository) -> None:
    there = work.path.parent / "export"
    there.mkdir()
    work.annex("initremote", "exp", "type=directory", f"directory={there}", "encryption=none", "exporttree=yes")
    before = state(work)
    assert "annexobjects=yes" in cluster_remote(work, "setup", "offsite", "--node", "node1", "--node", "exp", code=2)
    assert state(work) == before


def test_git_annex_accepting_a_node_with_a_warning_is_a_failure(work: Repository) -> None:
    before = state(work)
    # As where it does not say no to a node, and records the others.
    failing(work.environment, "updatecluster", "echo Cannot use this remote; exit 0")
    assert "did not accept node1" in cluster_remote(work, "setup", "offsite", "--node", "node1", code=1)
    assert state(work) == before


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1/x.git", "cannot be at"),
        *only_in_all(("ftp://nas/x.git", "cannot be at")),
        ("inside", "inside the work tree"),
    ],
)
def test_an_unreachable_node_is_refused(cluster: Cluster, work: Repository, url: str, said: str) -> None:
    work.git("remote", "add", "odd", str(work.path / "inside") if url == "inside" else url)
    work.git("config", "remote.odd.annex-uuid", "11111111-1111-4111-8111-111111111111")
    before = state(work)
    assert said in cluster_remote(work, "setup", "offsite", "--node", "odd", code=2)
    assert state(work) == before


def test_a_cluster_cannot_be_a_node(cluster: Cluster, work: Repository) -> None:
    cluster_remote(work, "setup", "all", "--cluster", "mycluster")
    before = state(work)
    assert "is a cluster itself" in cluster_remote(work, "setup", "offsite", "--node", "all", code=2)
    assert state(work) == before


@pytest.mark.slow
def test_an_invalid_remote_name_is_refused(work: Repository) -> None:
    before = state(work)
    for name in ("-x", "--upload-pack=touch pwned", "a b", "a..b", "x.lock", "x\x1b[2J", "/"):
        text = cluster_remote(work, "setup", "--node", "node1", "--", name, code=2)
        assert "\x1b" not in text, name
        assert state(work) == before, name


@pytest.mark.parametrize(
    ("name", "other"), [("my_disks", "my-disks"), *only_in_all(("2disks", "c-2disks"), ("été", "ete"))]
)
def test_a_name_git_config_cannot_hold_gets_a_working_suggestion(work: Repository, name: str, other: str) -> None:
    before = state(work)
    assert f"such as {other}" in cluster_remote(work, "setup", name, "--node", "node1", code=2)
    assert state(work) == before
    cluster_remote(work, "setup", name, "--node", "node1", "--cluster", other)
    assert work.config(f"annex.cluster.{other}")


def test_capitals_are_kept_in_the_remotes_name_and_lowered_in_the_clusters(work: Repository) -> None:
    cluster_remote(work, "setup", "Photos", "--node", "node1")
    assert work.config("remote.Photos.annex-uuid") == work.config("annex.cluster.photos")
    assert "set up already" in cluster_remote(work, "setup", "Photos", "--node", "node1")


def test_a_disk_unknown_to_git_annex_is_initialised(cluster: Cluster, work: Repository) -> None:
    work.environment.run("git", "clone", "--quiet", work.path, work.path.parent / "fresh")
    work.git("remote", "add", "fresh", work.path.parent / "fresh")
    cluster_remote(work, "setup", "offsite", "--node", "fresh")
    key = work.add("f", b"content")
    work.annex("copy", "--to", "offsite", "f")
    assert Repository(work.path.parent / "fresh", work.environment).has_object(key)


@pytest.mark.slow
def test_a_second_computer_joins_by_name_with_the_nodes_it_has(cluster: Cluster, work: Repository) -> None:
    cluster_remote(work, "setup", "mycluster")
    desktop = second_computer(cluster, 1, 2)
    cluster_remote(desktop, "setup", "mycluster", "--node", "node1", "--node", "node2")
    assert desktop.config("remote.mycluster.annex-uuid") == cluster.uuid
    assert members(desktop, cluster.uuid) == {node.uuid for node in cluster.nodes}
    key = desktop.add("f", b"from the desktop")
    desktop.annex("copy", "--to", "mycluster", "f")
    assert cluster.holders(key) == [True, True, False]


@pytest.mark.parametrize("how", ["name", *only_in_all("uuid")])
def test_another_remote_name_joins_the_given_cluster(cluster: Cluster, how: str) -> None:
    desktop = second_computer(cluster, 1)
    given = cluster.uuid if how == "uuid" else "MyCluster"
    cluster_remote(desktop, "setup", "everywhere", "--node", "node1", "--cluster", given)
    assert desktop.config("remote.everywhere.annex-uuid") == cluster.uuid
    assert desktop.config("annex.cluster.mycluster") == cluster.uuid


def test_a_node_added_on_a_second_computer_does_not_remove_the_others(cluster: Cluster, work: Repository) -> None:
    desktop = second_computer(cluster, 1)
    attic = desktop.path.parent / "attic"
    attic.mkdir()
    desktop.annex("initremote", "attic", "type=directory", f"directory={attic}", "encryption=none")
    uuid = desktop.config("remote.attic.annex-uuid")
    cluster_remote(desktop, "setup", "mycluster", "--node", "attic", "--node", "node1", "--cluster", cluster.uuid)
    assert members(desktop, cluster.uuid) == {*(node.uuid for node in cluster.nodes), uuid}
    key = desktop.add("f", b"content")
    desktop.annex("copy", "--to", "mycluster", "f")
    assert {cluster.nodes[0].uuid, uuid} <= desktop.locations(key)


def test_an_unknown_cluster_is_not_joined(cluster: Cluster) -> None:
    desktop = second_computer(cluster, 1)
    before = state(desktop)
    unknown = "ac000000-0000-8000-8000-000000000000"
    assert "knows no such" in cluster_remote(desktop, "setup", "x", "--node", "node1", "--cluster", unknown, code=2)
    assert state(desktop) == before


@pytest.mark.slow
def test_a_cluster_taken_down_by_hand_can_be_set_up_again(work: Repository) -> None:
    cluster_remote(work, "setup", "offsite", "--node", "node1")
    work.git("remote", "remove", "offsite")
    work.git("config", "remote.node1.annex-cluster-node", "mycluster")
    work.annex("updatecluster")
    work.git("config", "--unset", "annex.cluster.offsite")
    cluster_remote(work, "setup", "offsite", "--node", "node1", "--node", "node2")
    key = work.add("f", b"content")
    work.annex("copy", "--to", "offsite", "f")
    assert work.config("remote.offsite.annex-private") == "true"
    assert len(work.locations(key)) == 3


def test_a_private_remote_can_be_shared_later(work: Repository) -> None:
    cluster_remote(work, "setup", "offsite", "--node", "node1")
    cluster_remote(work, "setup", "offsite", "--node", "node1", "--share")
    assert b"sameas-name=offsite" in work.git("show", "git-annex:remote.log").stdout
    assert work.config("remote.offsite.annex-cost") == "50"
    key = work.add("f", b"content")
    work.annex("copy", "--to", "offsite", "f")
    assert len(work.locations(key)) == 2


def test_encrypted_nodes_are_excluded_from_sync(work: Repository) -> None:
    cluster_remote(work, "setup", "vault", "--node", "node1", "--tracking", "remote", "--encryption", "shared")
    assert work.config("remote.node1.annex-sync") == "false"
    assert work.config("remote.node2.annex-sync") is None
