"""A cluster without a server: the nodes are remotes of the user's own repository, of three kinds at once."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.command import cluster_remote
from tests.remote.testbed import messages, text
from tests.support.environment import Environment
from tests.support.repositories import Repository, make_repository, unplugged
from tests.support.slow import only_in_all
from tests.support.ssh import SshServer

SETUP = ("setup", "all", "--node", "disk", "--node", "nas", "--node", "bucket")


@dataclass(frozen=True)
class Home:
    """A user's repository with a disk, a machine reached over ssh, and a directory special remote, as one cluster.

    Attributes:
        laptop: the user's repository; its remote `all` is the cluster.
        disk: the node that is a local repository.
        nas: the node that is a repository over ssh.
        bucket: where the directory special remote keeps its files.
        server: the ssh server that leads to `nas`.
    """

    laptop: Repository
    disk: Repository
    nas: Repository
    bucket: Path
    server: SshServer

    @property
    def uuids(self) -> set[str]:
        """The nodes' UUIDs."""
        return {self.disk.uuid, self.nas.uuid, self.laptop.config("remote.bucket.annex-uuid") or ""}

    def in_bucket(self, key: str) -> bool:
        """Return whether the special remote holds the content of a key."""
        return any(path.is_file() for path in self.bucket.glob(f"*/*/{key}/{key}"))

    def holders(self, key: str) -> list[bool]:
        """Return for disk, NAS and bucket whether they hold the content of a key."""
        return [self.disk.has_object(key), self.nas.has_object(key), self.in_bucket(key)]

    def present(self, key: str) -> set[str]:
        """Return the nodes that the location log names."""
        return self.laptop.locations(key) & self.uuids


def make_home(environment: Environment, server: SshServer) -> Home:
    top = environment.directory
    laptop = make_repository(environment, top / "laptop", "laptop")
    laptop.git("commit", "-q", "--allow-empty", "-m", "start")
    nodes = []
    for name, description in (("disk", "disk in the attic"), ("nas", "machine in the cellar")):
        environment.run("git", "clone", "-q", laptop.path, top / name, cwd=top)
        node = Repository(top / name, environment)
        node.annex("init", description)
        nodes.append(node)
    disk, nas = nodes
    bucket = top / "bucket"
    bucket.mkdir()
    laptop.git("remote", "add", "disk", str(disk.path))
    laptop.git("remote", "add", "nas", server.url(nas.path))
    laptop.git("fetch", "-q", "--all")
    laptop.annex("initremote", "bucket", "type=directory", f"directory={bucket}", "encryption=none")
    laptop.annex("info", "--fast")
    cluster_remote(laptop, *SETUP, timeout=120)
    return Home(laptop, disk, nas, bucket, server)


@pytest.fixture(scope="module")
def _home(make_environment: Callable[[], Environment]) -> Iterator[Home]:
    environment = make_environment()
    with SshServer(environment) as server:
        environment.env |= server.variables
        yield make_home(environment, server)


@pytest.fixture
def home(_home: Home) -> Iterator[Home]:
    """Shared by the tests of this file, each of which uses keys of its own; no process may be left by any."""
    yield _home
    _home.laptop.environment.assert_no_process_left()


def test_setup_makes_the_cluster_its_nodes_and_a_remote_that_costs_less_than_they_do(home: Home) -> None:
    assert home.laptop.config("annex.cluster.all") == home.laptop.config("remote.all.annex-uuid")
    members = os.fsdecode(home.laptop.git("show", "git-annex:cluster.log").stdout).split()[2:]
    assert set(members) == home.uuids
    assert float(home.laptop.config("remote.all.annex-cost") or 999) < 100


def test_info_describes_the_cluster_of_this_repository(home: Home) -> None:
    shown = text(home.laptop.annex("info", "all"))
    assert "\nurl: none: the cluster of this repository\n" in shown
    assert f"\ncluster: all\ncluster uuid: {home.laptop.config('annex.cluster.all')}\nprotocol version: 4\n" in shown


def test_info_needs_nothing_that_only_transfers_need(home: Home) -> None:
    # git-annex starts the program again for each of its commands, also where nothing is transferred.
    told = {"PYTHONPROFILEIMPORTTIME": "1"}
    imported = imports(home.laptop.annex("info", "--fast", "all", env=told).stderr)
    assert "cluster_remote.remote.jobs" in imported
    # Where the package is installed for work on it, Python itself imports more than that.
    needed_anyway = imports(home.laptop.environment.run(sys.executable, "-c", "pass", env=told).stderr)
    assert (imported - needed_anyway).isdisjoint({"anyio", "asyncio", "dataclasses", "hashlib", "pathlib", "typing"})


def imports(profile: bytes) -> set[str]:
    """Return the modules in the output of `python -X importtime`."""
    return {line.rpartition("|")[2].strip() for line in os.fsdecode(profile).splitlines()}


def test_setup_again_changes_nothing(home: Home) -> None:
    before = home.laptop.git("config", "--list", "--local").stdout
    assert "all is set up already." in cluster_remote(home.laptop, *SETUP).out
    assert home.laptop.git("config", "--list", "--local").stdout == before


def test_copy_reaches_nodes_of_three_kinds_and_each_counts(home: Home) -> None:
    key = home.laptop.add("f", b"to everywhere")
    home.laptop.annex("copy", "--to", "all", "f")
    assert home.holders(key) == [True, True, True]
    assert home.present(key) == home.uuids
    assert "all: " in text(home.laptop.annex("whereis", "f"))
    assert home.laptop.annex("drop", "-N4", "f", check=False).returncode != 0
    home.laptop.annex("drop", "-N3", "f")
    home.laptop.annex("get", "--from", "all", "f")
    assert home.laptop.object_bytes(key) == b"to everywhere"
    home.laptop.annex("fsck", "--from", "all", "f")


def test_move_and_drop_leave_nothing_behind(home: Home) -> None:
    key = home.laptop.add("moved", b"moved there and back")
    home.laptop.annex("move", "--to", "all", "moved")
    assert home.holders(key) == [True, True, True]
    assert not home.laptop.has_object(key)
    home.laptop.annex("get", "moved")
    home.laptop.annex("drop", "--from", "all", "moved")
    assert home.holders(key) == [False, False, False]
    assert home.present(key) == set()


def test_a_move_to_nodes_that_lost_content_stores_it_whatever_the_log_says(home: Home) -> None:
    key = home.laptop.add("believed", b"believed to be there")
    home.laptop.annex("copy", "--to", "all", "believed")
    home.laptop.git("fetch", "--quiet", "--all")
    for repository in (home.disk, home.nas):
        repository.lose_object(key)
    for path in home.bucket.glob(f"*/*/{key}"):
        path.chmod(0o755)
        (path / key).chmod(0o644)
        (path / key).unlink()
    assert home.present(key) == home.uuids
    home.laptop.annex("move", "--to", "all", "believed")
    assert not home.laptop.has_object(key)
    assert home.holders(key) == [True, True, True]


def test_sync_uploads_once(home: Home) -> None:
    key = home.laptop.add("synced", b"one upload for all")
    home.laptop.git("commit", "-q", "-m", "synced")
    done = home.laptop.annex("sync", "--content", "--debug", timeout=180)
    assert home.holders(key) == [True, True, True]
    assert home.present(key) == home.uuids
    # git-annex may still name the nodes, because its process does not see at once what another one recorded; they
    # have the content by then, and nothing is sent to them.
    puts = [message for message in messages(done) if message.startswith("> PUT ") and message.endswith(key)]
    assert len(puts) == 3
    assert len(re.findall(r"copy synced.*\(to all", text(done))) + text(done).count("(to all...)") >= 1


def test_locations_are_recorded_once(home: Home) -> None:
    key = home.laptop.add("once", b"recorded once")
    home.laptop.annex("copy", "--to", "all", "once")
    home.laptop.annex("merge")
    path = os.fsdecode(home.laptop.annex("examinekey", "--format=${hashdirlower}", key).stdout) + f"{key}.log"
    lines = home.laptop.git("show", f"git-annex:{path}").stdout.splitlines()
    assert len(lines) == 4
    assert len({line.split()[-1] for line in lines}) == 4


@pytest.mark.parametrize("away", ["disk", *only_in_all("nas"), "bucket"])
def test_an_unavailable_node_is_skipped_and_filled_when_it_returns(home: Home, away: str) -> None:
    name = f"away-{away}"
    key = home.laptop.add(name, f"without {away}".encode())
    path = home.bucket if away == "bucket" else getattr(home, away).path
    with unplugged(path):
        done = home.laptop.annex("copy", "--to", "all", name)
    assert away in text(done)
    place = ["disk", "nas", "bucket"].index(away)
    assert home.holders(key) == [number != place for number in range(3)]
    assert len(home.present(key)) == 2
    # The content is there, so copy leaves it alone; repair fills the node.
    home.laptop.annex("copy", "--to", "all", name)
    assert len(home.present(key)) == 2
    cluster_remote(home.laptop, "repair", "all", name)
    assert home.holders(key) == [True, True, True]
    assert home.present(key) == home.uuids


def test_copying_new_files_asks_no_node_for_presence(home: Home) -> None:
    home.laptop.add("new", b"on no node yet")
    said = messages(home.laptop.annex("copy", "--to", "all", "new", "--debug"))
    assert any(line.startswith("> PUT ") for line in said)
    assert not any("CHECKPRESENT" in line for line in said)


def test_a_drop_with_a_node_unavailable_removes_from_the_others_and_names_it(home: Home) -> None:
    key = home.laptop.add("dropped", b"dropped in part")
    home.laptop.annex("copy", "--to", "all", "dropped")
    with home.disk.unplugged():
        done = home.laptop.annex("drop", "--from", "all", "dropped", check=False)
    assert done.returncode != 0
    assert "disk in the attic" in text(done)
    assert home.holders(key) == [True, False, False]
    assert home.present(key) == {home.disk.uuid}


def test_an_ssh_node_refusing_connections_counts_as_unavailable(home: Home) -> None:
    key = home.laptop.add("refused", b"no ssh today")
    home.server.stop()
    try:
        home.laptop.annex("copy", "--to", "all", "refused")
    finally:
        home.server.start()
    assert home.holders(key) == [True, False, True]


def test_the_fast_testremote_passes(home: Home) -> None:
    done = home.laptop.annex("testremote", "all", "--fast", check=False, timeout=280)
    assert done.returncode == 0, text(done)[-3000:]


# By default its files have a mebibyte, which some rounds cut into a thousand chunks; git-annex's proxy carries each of
# them to the directory special remote by itself, for ten minutes. These are cut into two.
@pytest.mark.slow
def test_the_full_testremote_passes(home: Home) -> None:
    done = home.laptop.annex("testremote", "all", "--size", "99", check=False, timeout=280)
    assert done.returncode == 0, text(done)[-3000:]


def test_initremote_without_url_suggests_the_right_command(home: Home) -> None:
    uuid = home.laptop.config("annex.cluster.all")
    done = home.laptop.annex(
        "initremote", "wrong", "type=external", "externaltype=cluster", "encryption=none", check=False
    )
    assert done.returncode != 0
    assert f"git annex initremote wrong --sameas={uuid} type=external" in text(done)


def test_initremote_without_url_and_without_a_cluster_says_what_to_do(environment: Environment) -> None:
    alone = make_repository(environment, environment.directory / "alone", "alone")
    done = alone.annex("initremote", "wrong", "type=external", "externaltype=cluster", "encryption=none", check=False)
    assert done.returncode != 0
    assert "cluster-remote setup NAME --node REMOTE --node REMOTE" in text(done)
