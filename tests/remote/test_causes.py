"""How the remote knows why git-annex removes content."""

from __future__ import annotations

import pytest

from cluster_remote.p2p.key import UUID, Key
from cluster_remote.remote.causes import Causes, Fetched, Uploaded, is_for_fsck
from tests.remote.testbed import Testbed, initremote, objects, text
from tests.support.repositories import make_repository
from tests.support.slow import only_in_all

KEY, OTHER = Key("SHA256-s1--ab"), Key("SHA256-s1--cd")
NODE = UUID("11111111-2222-4333-8444-555555555555")


def test_a_cause_applies_only_to_the_next_request_about_its_key() -> None:
    causes = Causes()
    causes.remember(KEY, Uploaded(frozenset({NODE})))
    causes.remember(OTHER, Fetched(NODE))
    assert causes.take(KEY) == Uploaded(frozenset({NODE}))
    assert causes.take(KEY) is None
    assert causes.take(OTHER) == Fetched(NODE)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (b".git/annex/tmp/fsck123.SHA256-s1--ab", True),
        (b".git/annex/tmp/SHA256-s1--ab", False),
        (b"fsck1.d/SHA256-s1--ab", False),
        (b"fsck12", False),
    ],
)
def test_a_file_fsck_downloads_into_is_recognised_by_its_name(path: bytes, told: bool) -> None:
    assert is_for_fsck(path) == told


@pytest.mark.slow
def test_undoing_an_upload_keeps_the_copies_that_existed_before(testbed: Testbed) -> None:
    key = testbed.client.add("undone", b"on the first node before")
    testbed.client.annex("copy", "--to", "n1", "undone")
    file = testbed.client.object_path(key)
    assert file is not None
    with testbed.driver() as annex:
        annex.prepare()
        assert annex.ask(f"TRANSFER STORE {key} {file}") == f"TRANSFER-SUCCESS STORE {key}"
        assert testbed.cluster.holders(key) == [True, True, True]
        assert annex.ask(f"REMOVE {key}").startswith(f"REMOVE-FAILURE {key} removed again from ")
        assert testbed.cluster.holders(key) == [True, False, False]
    assert testbed.present(key) == {testbed.cluster.nodes[0].uuid}


def test_fsck_drops_a_damaged_copy_only_from_its_node_and_names_it(testbed: Testbed) -> None:
    key = testbed.client.add("rotten", b"sound on three nodes")
    testbed.client.annex("copy", "--to", "mycl", "rotten")
    # The first by name, which is the one that is asked.
    testbed.cluster.nodes[2].damage_object(key, b"rotten on three node")
    done = testbed.client.annex("fsck", "--from", "mycl", "rotten", check=False)
    assert done.returncode != 0
    assert "the damaged copy on NAS: shelf 3 was removed" in text(done)
    assert testbed.cluster.holders(key) == [True, True, False]
    assert testbed.present(key) == {node.uuid for node in testbed.cluster.nodes[:2]}


@pytest.mark.slow
@pytest.mark.parametrize("here", [*only_in_all(True), False], ids=["here", "not here"])
def test_fsck_of_chunks_removes_none_since_the_damaged_one_is_unknown(own_testbed: Testbed, here: bool) -> None:
    cluster = own_testbed.cluster
    cluster.gateway.git("config", "remote.node1.annex-cost", "50")
    stranger = make_repository(own_testbed.environment, own_testbed.environment.directory / "stranger", "stranger")
    parameters = (f"url={own_testbed.url}", f"cluster={cluster.uuid}", "tracking=remote", "chunk=1KiB")
    initremote(stranger, "plain", *parameters)
    for name in ("rotten", "sound"):
        stranger.add(name, name.encode() * 1000)
        stranger.annex("copy", "--to", "plain", name)
    stranger.annex("drop", "--force", "sound", *([] if here else ["rotten"]))
    before = [objects(node) for node in cluster.nodes]
    path = next(path for key, path in before[0].items() if stranger.key("rotten").rpartition("--")[2] in key)
    path.chmod(0o644)
    path.write_bytes(bytes(path.stat().st_size))
    done = stranger.annex("fsck", "--from", "plain", "rotten", check=False)
    assert done.returncode != 0
    assert "it is unknown which node sent the damaged content" in text(done)
    assert [objects(node) for node in cluster.nodes] == before
    # What is moved here has its chunks fetched and then removed, too.
    stranger.annex("move", "--from", "plain", "sound")
    assert all(
        not any(stranger.key("sound").rpartition("--")[2] in key for key in objects(node)) for node in cluster.nodes
    )
