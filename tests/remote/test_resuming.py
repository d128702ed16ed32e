"""Transfers that go on where an earlier one broke off, in both directions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.remote.testbed import Testbed, messages, objects

CONTENT = bytes(range(256)) * 4000
SIZE = len(CONTENT)


def unique(word: str) -> bytes:
    """A content of SIZE bytes that no other test has."""
    return word.encode() + CONTENT[len(word) :]


def sent(said: list[str]) -> list[str]:
    """What was said in the PUT of a command, from the server's answer on, the key left out."""
    start = next(place for place, message in enumerate(said) if message.startswith("> PUT "))
    return [message for message in said[start:] if message.startswith(("< PUT-FROM", "> DATA", "> VALID"))]


@pytest.mark.parametrize("have", [1, 100_000, SIZE - 1])
def test_upload_to_a_node_sends_only_what_it_lacks(testbed: Testbed, have: int) -> None:
    name = f"rest{have}"
    content = unique(name)
    key = testbed.client.add(name, content)
    testbed.cluster.nodes[1].leave_partial(key, content[:have])
    done = testbed.client.annex("copy", "--to", "n2", name, "--debug")
    assert sent(messages(done)) == [f"< PUT-FROM {have}", f"> DATA {SIZE - have}", "> VALID"]
    assert testbed.cluster.nodes[1].object_bytes(key) == content
    assert testbed.present(key) == {testbed.cluster.nodes[1].uuid}


def test_upload_to_a_node_with_all_bytes_but_not_yet_stored_completes(testbed: Testbed) -> None:
    content = unique("all")
    key = testbed.client.add("all", content)
    testbed.cluster.nodes[0].leave_partial(key, content)
    done = testbed.client.annex("copy", "--to", "n1", "all", "--debug")
    assert sent(messages(done)) == [f"< PUT-FROM {SIZE}", "> DATA 0", "> VALID"]
    assert testbed.cluster.nodes[0].object_bytes(key) == content


def test_upload_to_the_cluster_starts_at_the_lowest_offset(testbed: Testbed) -> None:
    content = unique("shares")
    key = testbed.client.add("shares", content)
    for node, have in zip(testbed.cluster.nodes, (300_000, 200_000, 1_000_000), strict=True):
        node.leave_partial(key, content[:have])
    done = testbed.client.annex("copy", "--to", "mycl", "shares", "--debug")
    assert sent(messages(done)) == ["< PUT-FROM 200000", f"> DATA {SIZE - 200_000}", "> VALID"]
    assert [node.object_bytes(key) for node in testbed.cluster.nodes] == [content] * 3
    assert testbed.present(key) == testbed.nodes


def test_upload_onto_a_wrong_partial_file_restarts(testbed: Testbed) -> None:
    content = unique("spoilt")
    key = testbed.client.add("spoilt", content)
    testbed.cluster.nodes[2].leave_partial(key, b"X" * 5000)
    done = testbed.client.annex("copy", "--to", "n3", "spoilt", "--debug")
    said = messages(done)
    assert sent(said)[:3] == ["< PUT-FROM 5000", f"> DATA {SIZE - 5000}", "> VALID"]
    # The node has found out, by the checksum of the whole; git-annex tries again by itself.
    assert said[said.index("> VALID") + 1] == "< FAILURE"
    assert sent(said)[3:] == ["< PUT-FROM 0", f"> DATA {SIZE}", "> VALID"]
    assert testbed.cluster.nodes[2].object_bytes(key) == content


def test_a_node_that_did_not_store_for_a_wrong_partial_file_is_not_recorded(testbed: Testbed) -> None:
    content = unique("spoilt on one")
    key = testbed.client.add("spoilt on one", content)
    testbed.cluster.nodes[1].leave_partial(key, b"X" * 5000)
    testbed.client.annex("copy", "--to", "mycl", "spoilt on one")
    assert testbed.cluster.holders(key) == [True, False, True]
    assert testbed.present(key) == testbed.nodes - {testbed.cluster.nodes[1].uuid}


@pytest.fixture(scope="module")
def stored(shared_testbed: Testbed) -> tuple[Testbed, str, bytes]:
    """A content that is on the cluster: the testbed, its key and its bytes."""
    content = unique("stored")
    key = shared_testbed.client.add("stored", content)
    shared_testbed.client.annex("copy", "--to", "mycl", "stored")
    return shared_testbed, key, content


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        (b"", 0),
        (unique("stored")[:1], 1),
        (unique("stored")[:700_000], 700_000),
        (unique("stored"), SIZE),
        (unique("stored") + b"and more", 0),
    ],
    ids=["empty", "a byte", "a part", "complete", "longer"],
)
def test_download_resumes_at_the_end_of_the_file(
    stored: tuple[Testbed, str, bytes], tmp_path: Path, there: bytes, asked: int
) -> None:
    testbed, key, content = stored
    file = tmp_path / "file"
    file.write_bytes(there)
    with testbed.driver() as annex:
        annex.prepare()
        assert annex.ask(f"TRANSFER RETRIEVE {key} {file}") == f"TRANSFER-SUCCESS RETRIEVE {key}"
    assert file.read_bytes() == content
    assert f"P2P > GET {asked}  {key}" in annex.debug
    assert f"P2P < DATA {SIZE - asked}" in annex.debug
    assert annex.debug[-2:] == ["P2P < VALID", "P2P > SUCCESS"]


def test_download_creates_a_missing_file(stored: tuple[Testbed, str, bytes], tmp_path: Path) -> None:
    testbed, key, content = stored
    with testbed.driver() as annex:
        annex.prepare()
        assert annex.ask(f"TRANSFER RETRIEVE {key} {tmp_path}/new") == f"TRANSFER-SUCCESS RETRIEVE {key}"
    assert (tmp_path / "new").read_bytes() == content


def test_git_annex_get_resumes_and_verifies_the_whole(stored: tuple[Testbed, str, bytes]) -> None:
    testbed, key, content = stored
    testbed.client.annex("drop", "--force", "stored")
    testbed.client.leave_partial(key, content[:600_000])
    done = testbed.client.annex("get", "--from", "mycl", "stored", "--debug")
    assert f"> GET 600000  {key}" in messages(done)
    assert f"< DATA {SIZE - 600_000}" in messages(done)
    assert testbed.client.object_bytes(key) == content


def test_a_key_without_a_size_is_downloaded_from_the_start(testbed: Testbed, tmp_path: Path) -> None:
    """Nothing tells whether a file of that length is a part, or too long."""
    key = "URL--http&c%%example.com%sizeless"
    testbed.cluster.nodes[0].set_key(key, b"no size in the key")
    file = tmp_path / "file"
    file.write_bytes(b"something else that is longer than the content")
    with testbed.driver(testbed.cluster.nodes[0].uuid) as annex:
        annex.prepare()
        assert annex.ask(f"TRANSFER RETRIEVE {key} {file}") == f"TRANSFER-SUCCESS RETRIEVE {key}"
    assert file.read_bytes() == b"no size in the key"
    assert f"P2P > GET 0  {key}" in annex.debug


def test_download_of_missing_content_leaves_the_partial_file_unchanged(testbed: Testbed, tmp_path: Path) -> None:
    key = f"SHA256-s1000--{64 * '0'}"
    file = tmp_path / "file"
    file.write_bytes(b"a part")
    with testbed.driver(testbed.cluster.nodes[0].uuid) as annex:
        annex.prepare()
        answer = annex.ask(f"TRANSFER RETRIEVE {key} {file}")
    assert answer.startswith(f"TRANSFER-FAILURE RETRIEVE {key} ")
    assert "does not have the content" in answer
    assert file.read_bytes() == b"a part"


def test_download_into_an_unwritable_file_says_so(stored: tuple[Testbed, str, bytes], tmp_path: Path) -> None:
    testbed, key, _ = stored
    with testbed.driver() as annex:
        annex.prepare()
        for file in (tmp_path, tmp_path / "no such directory/file"):
            answer = annex.ask(f"TRANSFER RETRIEVE {key} {file}")
            assert answer.startswith(f"TRANSFER-FAILURE RETRIEVE {key} cannot write '{file}': ")
        # The session is as good as before.
        assert annex.ask(f"CHECKPRESENT {key}") == f"CHECKPRESENT-SUCCESS {key}"
    assert not list(tmp_path.iterdir())


# Encrypted contents: what two uploads send differs, so that the parts do not fit together


ENCRYPTED = "GPGHMACSHA1--"


@pytest.mark.parametrize("have", [1, 100_000, SIZE, SIZE + 1])
def test_an_encrypted_upload_never_resumes_another(testbed: Testbed, tmp_path: Path, have: int) -> None:
    node = testbed.cluster.nodes[0]
    key = f"{ENCRYPTED}{have:040x}"
    node.leave_partial(key, b"other".ljust(have)[:have])
    (tmp_path / "file").write_bytes(CONTENT)
    with testbed.driver(node.uuid, url=str(node.path)) as annex:
        annex.prepare()
        assert annex.ask(f"TRANSFER STORE {key} {tmp_path}/file") == f"TRANSFER-SUCCESS STORE {key}"
        assert annex.ask(f"CHECKPRESENT {key}") == f"CHECKPRESENT-SUCCESS {key}"
        assert annex.ask(f"TRANSFER RETRIEVE {key} {tmp_path}/back") == f"TRANSFER-SUCCESS RETRIEVE {key}"
    assert (tmp_path / "back").read_bytes() == CONTENT
    assert objects(node)[key].read_bytes() == CONTENT


def test_an_encrypted_upload_through_git_annexs_gateway_names_a_leftover_partial_file(
    testbed: Testbed, tmp_path: Path
) -> None:
    key = f"{ENCRYPTED}{SIZE:040x}"
    for node in testbed.cluster.nodes:
        node.leave_partial(key, b"other")
    (tmp_path / "file").write_bytes(CONTENT)
    with testbed.driver() as annex:
        annex.prepare()
        failed = annex.ask(f"TRANSFER STORE {key} {tmp_path}/file")
        assert failed.startswith(f"TRANSFER-FAILURE STORE {key} ")
        assert "a partial upload of this encrypted content" in failed
        assert ".git/annex/tmp/KEY" in failed
        assert annex.ask(f"CHECKPRESENT {key}") == f"CHECKPRESENT-FAILURE {key}"
        for node in testbed.cluster.nodes:
            (node.path / ".git/annex/tmp" / key).unlink()
        assert annex.ask(f"TRANSFER STORE {key} {tmp_path}/file") == f"TRANSFER-SUCCESS STORE {key}"
    assert [objects(node)[key].read_bytes() for node in testbed.cluster.nodes] == [CONTENT] * 3
