"""The location log is written before success is reported; if it cannot be written, the request fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote.testbed import Testbed, initremote, make_testbed, objects, text
from tests.support.environment import temporary_environment
from tests.support.processes import end_group
from tests.support.repositories import make_repository
from tests.support.slow import representatives

FAILING = """\
#!/bin/sh
if [ "$1" = setpresentkey ]; then {failure}; fi
exec {real} "$@"
"""
FAILURES = {
    "it ends": ("echo no space left >&2; exit 1", "no space left"),
    "it says no": (
        """while read -r line; do echo '{"success":false,"error-messages":["disk full"]}'; done; exit""",
        "disk full",
    ),
    "it says nothing of use": ("while read -r line; do echo eh; done; exit", "eh"),
}


@pytest.fixture(scope="module")
def place() -> Iterator[Testbed]:
    """A testbed for this file alone, where git-annex can be made to fail."""
    with temporary_environment() as environment:
        yield make_testbed(environment)


@pytest.fixture(params=representatives(FAILURES, "it says no"))
def complaint(place: Testbed, request: pytest.FixtureRequest) -> Iterator[str]:
    """Make setpresentkey fail in some way for one test; the value is the expected message."""
    failure, complaint = FAILURES[request.param]
    real = place.environment.which("git-annex")
    shim = place.environment.program("git-annex", FAILING.replace("{failure}", failure).replace("{real}", str(real)))
    yield complaint
    shim.unlink(missing_ok=True)


def test_an_upload_that_cannot_be_recorded_fails(place: Testbed, complaint: str) -> None:
    key = place.client.add("unrecorded", b"nobody can know " + complaint.encode())
    done = place.client.annex("copy", "--to", "mycl", "unrecorded", check=False)
    assert done.returncode != 0
    assert complaint in text(done)
    assert "Traceback" not in text(done)
    assert place.client.locations(key) == {place.client.uuid}
    assert place.cluster.holders(key) == [True] * 3
    # Nothing is lost by it: once the log can be written, it is.
    (place.environment.bin / "git-annex").unlink()
    place.client.annex("copy", "--fast", "--to", "mycl", "unrecorded")
    assert place.present(key) == place.nodes


def test_a_removal_that_cannot_be_recorded_fails(place: Testbed, complaint: str) -> None:
    content = b"nobody can forget " + complaint.encode()
    key = f"WORM-s{len(content)}-m1--{complaint.replace(' ', '-')}"
    place.cluster.nodes[0].set_key(key, content)
    with place.driver() as annex:
        annex.prepare()
        answer = annex.ask(f"REMOVE {key}")
    assert answer.startswith(f"REMOVE-FAILURE {key} ")
    assert complaint in answer
    assert not place.cluster.nodes[0].has_object(key)


def test_success_is_reported_only_once_it_is_durably_recorded(place: Testbed, tmp_path: Path) -> None:
    """All processes are killed right after the answer."""
    (tmp_path / "file").write_bytes(b"data")
    for number in range(3):
        key = f"WORM-s4-m{number}--killed"
        with place.driver() as annex:
            annex.prepare()
            assert annex.ask(f"TRANSFER STORE {key} {tmp_path}/file") == f"TRANSFER-SUCCESS STORE {key}"
            end_group(annex.process.pid)
            assert annex.process.wait(20) < 0
        assert place.present(key) == place.nodes
        with place.driver() as annex:
            annex.prepare()
            assert annex.ask(f"REMOVE {key}") == f"REMOVE-SUCCESS {key}"
            end_group(annex.process.pid)
            assert annex.process.wait(20) < 0
        assert place.present(key) == set()


def test_locations_are_committed_when_git_annex_finishes(place: Testbed) -> None:
    key = place.client.add("committed", b"in the branch, not in the journal")
    place.client.annex("copy", "--to", "mycl", "committed")
    place.environment.assert_no_process_left()
    assert not list((place.client.path / ".git/annex/journal").glob("*.log"))
    branch = place.client.git("grep", "-l", "-e", place.cluster.nodes[0].uuid, "git-annex").stdout.decode()
    assert f"{key}.log" in branch


def test_no_cluster_and_no_remote_is_ever_a_location(place: Testbed) -> None:
    key = place.client.add("never", b"neither the cluster nor the remote")
    place.client.annex("copy", "--to", "mycl", "never")
    log = place.client.git("grep", "-h", "-e", " 1 ", "git-annex", "--", f"*{key}.log").stdout.decode()
    assert place.cluster.uuid not in log
    assert {line.split()[-1] for line in log.splitlines()} == {place.client.uuid, *place.nodes}


def test_nothing_is_recorded_for_encrypted_and_chunked_contents(place: Testbed) -> None:
    """Neither their keys nor the nodes that hold them."""
    stranger = make_repository(place.environment, place.environment.directory / "stranger", "stranger")
    parameters = (f"url={place.url}", f"cluster={place.cluster.uuid}", "tracking=remote", "chunk=1KiB")
    initremote(stranger, "plain", *parameters)
    initremote(stranger, "vault", *parameters, "encryption=shared")
    for name in ("plain", "vault"):
        key = stranger.add(name, name.encode() * 1000)
        stranger.annex("copy", "--to", name, name)
        stranger.annex("drop", "--force", name)
        stranger.annex("get", "--from", name, name)
        assert stranger.object_bytes(key) == name.encode() * 1000
        own = stranger.config(f"remote.{name}.annex-uuid")
        assert own is not None
        assert stranger.locations(key) == {stranger.uuid, own}
    logged = stranger.git("ls-tree", "-r", "--name-only", "git-annex").stdout.decode()
    assert "-S" not in logged
    assert "GPGHMAC" not in logged
    # The nodes hold chunks, under keys that tell their own sizes; and what is encrypted under keys that tell nothing.
    plain = stranger.key("plain")
    for node in place.cluster.nodes:
        held = objects(node).keys()
        chunks = [plain.replace("--", f"-S1024-C{number}--") for number in range(1, 6)]
        assert {f"WORM-s1024--{chunk}" for chunk in chunks[:4]} | {f"WORM-s904--{chunks[4]}"} <= held
        assert sum(each.startswith("GPGHMACSHA1--") for each in held) == 5
        assert plain not in held
    assert place.client.locations(plain) == set()
