"""Servers that speak an older version of the protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.remote.testbed import Testbed, initremote, make_testbed, messages, text
from tests.support.environment import temporary_environment
from tests.support.shells import limit_version
from tests.support.slow import only_in_all

VERSIONS = [1, *only_in_all(0, 2, 3)]


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda version: f"version {version}")
def older(request: pytest.FixtureRequest) -> Iterator[tuple[int, Testbed]]:
    """The version of a testbed's servers, and the testbed; its client has a remote `one` for the first node alone."""
    with temporary_environment() as environment:
        testbed = make_testbed(environment)
        node = testbed.cluster.nodes[0]
        initremote(testbed.client, "one", f"url={node.path}", sameas=node.uuid)
        limit_version(environment, request.param)
        yield request.param, testbed


@pytest.mark.slow
def test_a_single_repository_stores_retrieves_checks_and_drops(older: tuple[int, Testbed]) -> None:
    version, testbed = older
    node = testbed.cluster.nodes[0]
    files = ("single", "empty")
    contents = {testbed.client.add("single", b"some content"): b"some content", testbed.client.add("empty", b""): b""}
    done = testbed.client.annex("copy", "--to", "one", *files, "--debug")
    said = messages(done)
    assert ("< ERROR unknown command" if version == 0 else f"< VERSION {version}") in said
    assert said.count("> VALID") == (2 if version > 0 else 0)
    for key, content in contents.items():
        assert node.object_bytes(key) == content
        assert testbed.present(key) == {node.uuid}
        testbed.client.annex("checkpresentkey", key, "one")
    testbed.client.annex("drop", "--force", *files)
    testbed.client.annex("get", "--from", "one", *files)
    for key, content in contents.items():
        assert testbed.client.object_bytes(key) == content
    testbed.client.annex("drop", "--from", "one", *files)
    for key in contents:
        assert not node.has_object(key)
        assert testbed.present(key) == set()
        gone = testbed.client.annex("checkpresentkey", key, "one", check=False)
        assert gone.returncode == 1


def test_downloads_of_missing_content_fail(older: tuple[int, Testbed]) -> None:
    _, testbed = older
    file = testbed.environment.directory / "file"
    with testbed.driver(testbed.cluster.nodes[0].uuid, url=str(testbed.cluster.nodes[0].path)) as annex:
        annex.prepare()
        for key in ("WORM-s5-m1--absent", "WORM-s0-m1--absent-and-empty", "WORM--absent-without-a-size"):
            assert annex.ask(f"TRANSFER RETRIEVE {key} {file}").startswith(f"TRANSFER-FAILURE RETRIEVE {key} ")


def test_downloads_resume(older: tuple[int, Testbed]) -> None:
    _, testbed = older
    node = testbed.cluster.nodes[0]
    content = bytes(range(256)) * 1000
    # What has no checksum is fetched as a whole.
    key = f"SHA256-s{len(content)}--{hashlib.sha256(content).hexdigest()}"
    node.set_key(key, content)
    file = testbed.environment.directory / "file"
    file.write_bytes(content[:100_001])
    with testbed.driver(node.uuid, url=str(node.path)) as annex:
        annex.prepare()
        assert annex.ask(f"TRANSFER RETRIEVE {key} {file}") == f"TRANSFER-SUCCESS RETRIEVE {key}"
    assert file.read_bytes() == content
    assert f"P2P < DATA {len(content) - 100_001}" in annex.debug


def test_a_cluster_is_only_stored_to_if_the_server_names_its_nodes(older: tuple[int, Testbed]) -> None:
    version, testbed = older
    key = testbed.client.add("everywhere", b"on every node")
    done = testbed.client.annex("copy", "--to", "mycl", "everywhere", check=False)
    if version < 2:
        assert done.returncode != 0
        assert f"not on which nodes (it speaks protocol version {version})" in text(done)
        assert testbed.present(key) == set()
    else:
        assert done.returncode == 0
        assert testbed.cluster.holders(key) == [True] * 3
        assert testbed.present(key) == testbed.nodes


def test_after_a_drop_from_a_cluster_that_names_no_nodes_the_log_has_no_locations(older: tuple[int, Testbed]) -> None:
    _, testbed = older
    content = b"dropped from every node"
    key = testbed.client.add("nowhere", content)
    for node in testbed.cluster.nodes:
        node.set_key(key, content)
        testbed.client.annex("setpresentkey", key, node.uuid, "1")
    testbed.client.annex("drop", "--from", "mycl", "nowhere")
    assert testbed.cluster.holders(key) == [False] * 3
    assert testbed.present(key) == set()
