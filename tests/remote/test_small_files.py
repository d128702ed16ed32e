"""What keeps small files fast: a watch of our own beside git-annex's, and reading what is on a local disk."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from cluster_remote.remote import requests
from cluster_remote.remote.watch import KeptWatch
from tests.remote.driver import Driver
from tests.remote.testbed import Testbed
from tests.support.peers import Close, Drain, Expect, ScriptedPeer, Send, Step, opening

CONTENT = b"twenty bytes of data"
KEY = f"SHA256-s{len(CONTENT)}--{hashlib.sha256(CONTENT).hexdigest()}"
# What a chunk holds is verified by git-annex, once it has all chunks.
CHUNK = f"SHA256-s1000-S{len(CONTENT)}-C1--{64 * '0'}"
# What `opened` calls an inotify descriptor.
INOTIFY = "anon_inode:inotify"


def opened(pid: int | str = "self") -> list[str]:
    """Return what a process's descriptors lead to."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        # The descriptor that lists the directory is closed by now.
        with suppress(FileNotFoundError):
            found.append(str(each.readlink()))
    return found


def watched() -> list[int]:
    """Return the inodes that this process watches."""
    found = []
    for each in Path("/proc/self/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            found += re.findall(r"^inotify wd:\S+ ino:(\S+)", each.read_text(), re.MULTILINE)
    return [int(inode, 16) for inode in found]


def test_a_small_transfer_sends_one_progress_and_keeps_a_watch(
    testbed: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The machine may be slow. The program shares this process's memory.
    monkeypatch.setattr(requests, "_PROGRESS_INTERVAL", 60.0)
    (tmp_path / "file").write_bytes(CONTENT)
    with testbed.driver() as annex:
        annex.prepare()
        assert annex.ask(f"TRANSFER STORE {KEY} {tmp_path / 'file'}") == f"TRANSFER-SUCCESS STORE {KEY}"
        assert INOTIFY not in opened(annex.process.pid)
        for name in ("one", "two"):
            assert annex.ask(f"TRANSFER RETRIEVE {KEY} {tmp_path / name}") == f"TRANSFER-SUCCESS RETRIEVE {KEY}"
            assert (tmp_path / name).read_bytes() == CONTENT
            assert opened(annex.process.pid).count(INOTIFY) == 1
        assert annex.ask(f"REMOVE {KEY}") == f"REMOVE-SUCCESS {KEY}"
        assert annex.progress == [len(CONTENT)] * 3


def test_git_annex_hears_of_the_progress_of_what_it_may_find_to_be_wrong(testbed: Testbed, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    with testbed.driver() as annex:
        annex.prepare()
        assert annex.ask(f"TRANSFER STORE {CHUNK} {tmp_path / 'file'}") == f"TRANSFER-SUCCESS STORE {CHUNK}"
        annex.progress.clear()
        assert annex.ask(f"TRANSFER RETRIEVE {CHUNK} {tmp_path / 'back'}") == f"TRANSFER-SUCCESS RETRIEVE {CHUNK}"
        assert annex.progress[-1] == len(CONTENT)
        assert annex.ask(f"REMOVE {CHUNK}") == f"REMOVE-SUCCESS {CHUNK}"


@pytest.mark.parametrize(
    ("request_", "steps", "told"),
    [
        ("RETRIEVE", [Expect(re.compile(rb"GET 0 .*")), Send(b"DATA 20\ntwenty "), Close()], [7]),
        ("STORE", [Expect(re.compile(rb"PUT .*")), Send(b"PUT-FROM 0\n"), Expect(b"DATA 20"), Close()], [20]),
        ("RETRIEVE", [Expect(re.compile(rb"GET 0 .*")), Send(b"FAILURE\n"), Drain()], []),
    ],
)
def test_a_transfer_that_fails_says_how_far_it_got(
    testbed: Testbed, tmp_path: Path, request_: str, steps: list[Step], told: list[int]
) -> None:
    path = tmp_path / "socket"
    testbed.keep_token(testbed.cluster.uuid, f"unix:{path}", "token")
    script = [*opening(testbed.cluster.uuid, token="token"), *steps]
    (tmp_path / "file").write_bytes(b"" if request_ == "RETRIEVE" else CONTENT)
    with testbed.driver(url=f"unix:{path}", timeout="5") as annex, ScriptedPeer(script, unix=path):
        annex.prepare()
        answer = annex.ask(f"TRANSFER {request_} {KEY} {tmp_path / 'file'}")
        assert answer.startswith(f"TRANSFER-FAILURE {request_} {KEY} "), answer
        assert annex.progress == told


def test_small_files_from_a_local_disk_are_read_once_a_node_has_answered(testbed: Testbed, tmp_path: Path) -> None:
    gateway = testbed.cluster.gateway
    good, damaged = (gateway.add(f"small {name}", name.encode()) for name in ("good", "damaged"))
    settings = {"url": "", "encryption": "none", "sameas-uuid": testbed.cluster.uuid}
    with Driver(gateway, testbed.cluster.uuid, settings) as annex:
        annex.prepare()
        file = tmp_path / "file"
        for key in (good, damaged):
            stored = gateway.object_path(key)
            assert annex.ask(f"TRANSFER STORE {key} {stored}") == f"TRANSFER-SUCCESS STORE {key}"
        for node in testbed.cluster.nodes[:2]:
            node.damage_object(damaged)
        assert annex.ask(f"TRANSFER RETRIEVE {good} {file}") == f"TRANSFER-SUCCESS RETRIEVE {good}"
        assert file.read_bytes() == b"good"
        assert not any("P2P > GET" in line for line in annex.debug)
        for unwritable in (tmp_path, tmp_path / "no such directory/file"):
            answer = annex.ask(f"TRANSFER RETRIEVE {good} {unwritable}")
            assert answer.startswith(f"TRANSFER-FAILURE RETRIEVE {good} cannot write '{unwritable}': ")
        # A part that is there already is replaced, and a damaged copy is not taken for the content.
        file.write_bytes(b"dama")
        assert annex.ask(f"TRANSFER RETRIEVE {damaged} {file}") == f"TRANSFER-SUCCESS RETRIEVE {damaged}"
        assert file.read_bytes() == b"damaged"
    assert list(tmp_path.iterdir()) == [file]


def test_the_watch_follows_the_directory_and_ends(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    watch = KeptWatch()
    before = watched()
    for directory in (one, one, two):
        watch.keep(os.fsencode(directory))
        assert watched() == [*before, directory.stat().st_ino]
    watch.keep(os.fsencode(tmp_path / "nowhere"))
    assert watched() == before
    watch.close()
    assert watched() == before
    watch.close()


def test_there_is_no_watch_where_python_cannot_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    before = watched()
    watch = KeptWatch()
    watch.keep(os.fsencode(tmp_path))
    assert watched() == before
    watch.close()
