"""Keys and files whose names a careless program would trip over."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote.driver import Driver
from tests.remote.testbed import Testbed, objects
from tests.support.slow import only_in_all

NAMES = [
    b"two  spaces .txt",
    b" spaces around ",
    b"quote\"'`$(x)\\.txt",
    b"per%cent %20 &a:b",
    b"tab\tbell\a\x01\x1b[31m\x7f.bin",
    b"carriage\rreturn",
    b"latin \xe9.\xff",
    "ünï 日本 \u2028\u00a0\u3000\u0085".encode(),
    b"-dash",
    b"--force",
    b"CHECKPRESENT-SUCCESS",
    b"a" * 200,
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["SHA256E", *only_in_all("WORM")])
def test_files_of_any_name_round_trip(testbed: Testbed, backend: str) -> None:
    directory = os.fsencode(f"odd {backend}")
    contents = {directory + b"/" + name: backend.encode() + b" " + name for name in NAMES}
    contents[directory + b"/empty"] = b""
    for name, content in contents.items():
        testbed.client.write(name, content)
    testbed.client.annex("add", "--quiet", f"--backend={backend}", directory)
    listed = testbed.client.annex("find", "--format=${file}\\000${key}\\000", directory).stdout.split(b"\0")
    keys = dict(zip(listed[::2], map(os.fsdecode, listed[1::2]), strict=False))
    assert keys.keys() == contents.keys()
    testbed.client.annex("copy", "--to", "mycl", directory)
    for node in testbed.cluster.nodes:
        held = objects(node)
        for name, content in contents.items():
            if keys[name].isascii():
                assert held[keys[name]].read_bytes() == content, name
    # In JSON git-annex has something else for bytes that are not UTF-8.
    shown = [os.fsencode(key).decode("utf-8", "replace") for key in keys.values()]
    assert present(testbed, directory) == dict.fromkeys(shown, testbed.nodes)
    testbed.client.annex("drop", "--force", directory)
    # git-annex gets only keys with checksums from special remotes, unless it is told that this one is trusted.
    testbed.client.annex("get", "--from", "mycl", directory, "-c", "annex.security.allow-unverified-downloads=ACKTHPPT")
    for name, content in contents.items():
        assert Path(os.fsdecode(os.fsencode(testbed.client.path) + b"/" + name)).read_bytes() == content, name
    testbed.client.annex("fsck", "--from", "mycl", "--fast", directory)
    testbed.client.annex("drop", "--from", "mycl", directory)
    for node in testbed.cluster.nodes:
        assert not objects(node).keys() & set(keys.values())
    assert present(testbed, directory) == {key: set() for key in shown}


def present(testbed: Testbed, directory: bytes) -> dict[str, set[str]]:
    """For the keys of all files in a directory, the nodes that `git annex whereis` lists."""
    done = testbed.client.annex("whereis", "--json", directory)
    found = [json.loads(line) for line in done.stdout.decode("utf-8", "surrogateescape").split("\n") if line]
    return {each["key"]: {where["uuid"] for where in each["whereis"]} & testbed.nodes for each in found}


KEYS = [
    "WORM-s4-m1--quotes\"'`$(x)\\",
    "WORM-s4-m1--per%cent%20&a:b",
    "WORM-s4-m1--bell\a\x01\x1b[31m\x7f",
    "WORM-s4-m1--no-break\u00a0space\u2028\u3000\u0085\u1680",
    "WORM-s4-m1--trailing\u0085",
    "WORM-s4-m1--separators\x1c\x1d\x1e\x1f",
    os.fsdecode(b"WORM-s4-m1--latin-\xe9\xff"),
    "WORM-s4-m1--ünï日本",
    "WORM-s4-m1----dashes--",
    "WORM-s4-m1---s5--SHA256E",
    "WORM-s4-m1--" + "a" * 200,
    "XOTHER-s4--backend",
    "WORM--nosize",
]


def test_keys_of_any_name_are_stored_on_a_cluster_checked_retrieved_and_removed(
    testbed: Testbed, tmp_path: Path
) -> None:
    """Through its gateway."""
    nodes = testbed.cluster.nodes
    with testbed.driver() as annex:
        annex.prepare()
        for key in KEYS:
            for step in there_and_back(annex, tmp_path, key):
                # A proxy of git-annex 10.20261026 takes bytes of UTF-8 for Latin-1 when it speaks with its nodes: a key
                # which is not ASCII lies there under another name, and is found by nobody but that proxy.
                if step == "stored" and key.isascii():
                    assert [objects(node)[key].read_bytes() for node in nodes] == [b"data"] * len(nodes), key
                assert testbed.present(key) == (testbed.nodes if step == "stored" else set()), key
            assert not any(key in objects(node) for node in nodes), key


def test_keys_of_any_name_are_stored_on_a_node_checked_retrieved_and_removed(testbed: Testbed, tmp_path: Path) -> None:
    """By its own git-annex-shell."""
    node = testbed.cluster.nodes[0]
    with testbed.driver(node.uuid, url=str(node.path)) as annex:
        annex.prepare()
        for key in KEYS:
            for step in there_and_back(annex, tmp_path, key):
                if step == "stored":
                    assert objects(node)[key].read_bytes() == b"data", key
            assert key not in objects(node), key


def there_and_back(annex: Driver, directory: Path, key: str) -> Iterator[str]:
    """Everything that git-annex does with a key, in two steps after which there is something to be seen."""
    (directory / "file").write_bytes(b"data")
    assert annex.ask(f"CHECKPRESENT {key}") == f"CHECKPRESENT-FAILURE {key}"
    assert annex.ask(f"TRANSFER STORE {key} {directory}/file") == f"TRANSFER-SUCCESS STORE {key}"
    yield "stored"
    assert annex.ask(f"CHECKPRESENT {key}") == f"CHECKPRESENT-SUCCESS {key}"
    assert annex.ask(f"TRANSFER RETRIEVE {key} {directory}/back") == f"TRANSFER-SUCCESS RETRIEVE {key}"
    assert (directory / "back").read_bytes() == b"data", key
    (directory / "back").unlink()
    assert annex.ask(f"REMOVE {key}") == f"REMOVE-SUCCESS {key}"
    assert annex.ask(f"CHECKPRESENT {key}") == f"CHECKPRESENT-FAILURE {key}"
    yield "removed"


PLACES = [
    "two  spaces ",
    " leading",
    "trailing\u0085",
    "trailing\x1f",
    "control\t\x01\x0b\x0c\r\x7f",
    os.fsdecode(b"latin \xe9"),
    "ünï",
]


def test_content_is_sent_from_and_written_to_files_of_any_name(testbed: Testbed, tmp_path: Path) -> None:
    with testbed.driver(testbed.cluster.nodes[0].uuid) as annex:
        annex.prepare()
        for number, place in enumerate(PLACES):
            content = b"from " + os.fsencode(place)
            key = f"WORM-s{len(content)}-m2--place{number}"
            (tmp_path / place).write_bytes(content)
            assert annex.ask(f"TRANSFER STORE {key} {tmp_path}/{place}") == f"TRANSFER-SUCCESS STORE {key}"
            (tmp_path / place).unlink()
            assert annex.ask(f"TRANSFER RETRIEVE {key} {tmp_path}/{place}") == f"TRANSFER-SUCCESS RETRIEVE {key}"
            assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {place: content}
            (tmp_path / place).unlink()


def test_a_file_may_be_given_relative_to_the_working_directory(testbed: Testbed) -> None:
    """As git-annex does it; the name may look like an option."""
    key = "WORM-s4-m2--relative"
    (testbed.client.path / "-n").write_bytes(b"here")
    with testbed.driver(testbed.cluster.nodes[0].uuid) as annex:
        annex.prepare()
        assert annex.ask(f"TRANSFER STORE {key} -n") == f"TRANSFER-SUCCESS STORE {key}"
    (testbed.client.path / "-n").unlink()
    assert testbed.cluster.nodes[0].object_bytes(key) == b"here"


def test_a_malformed_key_is_refused_before_any_node_is_asked(testbed: Testbed, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    keys = ["nonsense", "WORM-s4", "WORM-sx--name", "-s4--name", f"WORM-s{2**63}--x"]
    with testbed.driver() as annex:
        annex.prepare()
        for key in keys:
            answers = [
                annex.ask(f"{request} {key}{rest}")
                for request, rest in (
                    ("TRANSFER STORE", f" {tmp_path}/file"),
                    ("TRANSFER RETRIEVE", f" {tmp_path}/back"),
                    ("CHECKPRESENT", ""),
                    ("REMOVE", ""),
                )
            ]
            assert [answer.split()[0] for answer in answers] == [
                "TRANSFER-FAILURE",
                "TRANSFER-FAILURE",
                "CHECKPRESENT-UNKNOWN",
                "REMOVE-FAILURE",
            ], key
        # It goes on working.
        assert annex.ask("CHECKPRESENT WORM-s1-m1--nothing").startswith("CHECKPRESENT-FAILURE")
    assert not (tmp_path / "back").exists()
    asked = [message for message in annex.debug if message.startswith("P2P >")]
    assert asked
    assert not any(f" {key}" in message for message in asked for key in keys)
