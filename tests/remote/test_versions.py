"""Servers that speak an older version of the protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.remote.sites import Site, initremote, make_site, messages, text
from tests.support.environment import temporary_environment
from tests.support.shells import limit_version
from tests.support.slow import only_in_all

VERSIONS = [1, *only_in_all(0, 2, 3)]


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda version: f"version {version}")
def older(request: pytest.FixtureRequest) -> Iterator[tuple[int, Site]]:
    """The version of all servers of a site, and the site; its client has a remote `one` for the first node alone."""
    with temporary_environment() as environment:
        site = make_site(environment)
        node = site.cluster.nodes[0]
        initremote(site.client, "one", f"url={node.path}", sameas=node.uuid)
        limit_version(environment, request.param)
        yield request.param, site


@pytest.mark.slow
def test_a_single_repository_stores_gives_checks_and_drops(older: tuple[int, Site]) -> None:
    version, site = older
    node = site.cluster.nodes[0]
    files = ("single", "empty")
    contents = {site.client.add("single", b"some content"): b"some content", site.client.add("empty", b""): b""}
    done = site.client.annex("copy", "--to", "one", *files, "--debug")
    said = messages(done)
    assert ("< ERROR unknown command" if version == 0 else f"< VERSION {version}") in said
    assert said.count("> VALID") == (2 if version > 0 else 0)
    for key, content in contents.items():
        assert node.object_bytes(key) == content
        assert site.present(key) == {node.uuid}
        site.client.annex("checkpresentkey", key, "one")
    site.client.annex("drop", "--force", *files)
    site.client.annex("get", "--from", "one", *files)
    for key, content in contents.items():
        assert site.client.object_bytes(key) == content
    site.client.annex("drop", "--from", "one", *files)
    for key in contents:
        assert not node.has_object(key)
        assert site.present(key) == set()
        gone = site.client.annex("checkpresentkey", key, "one", check=False)
        assert gone.returncode == 1


def test_downloads_of_what_is_not_there_fail(older: tuple[int, Site]) -> None:
    _, site = older
    file = site.environment.directory / "file"
    with site.driver(site.cluster.nodes[0].uuid, url=str(site.cluster.nodes[0].path)) as annex:
        annex.prepare()
        for key in ("WORM-s5-m1--absent", "WORM-s0-m1--absent-and-empty", "WORM--absent-without-a-size"):
            assert annex.ask(f"TRANSFER RETRIEVE {key} {file}").startswith(f"TRANSFER-FAILURE RETRIEVE {key} ")


def test_downloads_resume(older: tuple[int, Site]) -> None:
    _, site = older
    node = site.cluster.nodes[0]
    content = bytes(range(256)) * 1000
    # What has no checksum is fetched as a whole.
    key = f"SHA256-s{len(content)}--{hashlib.sha256(content).hexdigest()}"
    node.set_key(key, content)
    file = site.environment.directory / "file"
    file.write_bytes(content[:100_001])
    with site.driver(node.uuid, url=str(node.path)) as annex:
        annex.prepare()
        assert annex.ask(f"TRANSFER RETRIEVE {key} {file}") == f"TRANSFER-SUCCESS RETRIEVE {key}"
    assert file.read_bytes() == content
    assert f"P2P < DATA {len(content) - 100_001}" in annex.debug


def test_a_cluster_is_stored_to_only_where_its_nodes_are_named(older: tuple[int, Site]) -> None:
    version, site = older
    key = site.client.add("everywhere", b"on every node")
    done = site.client.annex("copy", "--to", "mycl", "everywhere", check=False)
    if version < 2:
        assert done.returncode != 0
        assert f"not on which nodes (it speaks protocol version {version})" in text(done)
        assert site.present(key) == set()
    else:
        assert done.returncode == 0
        assert site.cluster.holders(key) == [True] * 3
        assert site.present(key) == site.nodes


def test_a_cluster_that_names_no_nodes_has_lost_what_it_dropped(older: tuple[int, Site]) -> None:
    _, site = older
    content = b"dropped from every node"
    key = site.client.add("nowhere", content)
    for node in site.cluster.nodes:
        node.set_key(key, content)
        site.client.annex("setpresentkey", key, node.uuid, "1")
    site.client.annex("drop", "--from", "mycl", "nowhere")
    assert site.cluster.holders(key) == [False] * 3
    assert site.present(key) == set()
