"""Peers that stall, disconnect, send garbage or refuse: a clear error, nothing recorded, nothing left behind."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.remote.driver import Driver
from tests.remote.testbed import Testbed, initremote, text
from tests.support.environment import Environment, temporary_environment
from tests.support.peers import Close, Drain, Expect, Read, Reset, Script, ScriptedPeer, Send, Stall, Step, opening
from tests.support.processes import wait_until
from tests.support.repositories import make_cluster
from tests.support.shells import scripted_shell
from tests.support.slow import only_in_all, representatives
from tests.support.ssh import SshServer

TOKEN = "CLUSTER_REMOTE_TOKEN"
SECRET = "Sesame4711open"
WRONG = "12345678-1234-4234-8234-123456789abc"

CONTENT = b"twenty bytes of data"
SIZE = len(CONTENT)
KEY = f"WORM-s{SIZE}-m1--key"

CHECK = Expect(re.compile(rb"CHECKPRESENT \S+"))
PUT = Expect(re.compile(rb"PUT  \S+"))
GET = Expect(re.compile(rb"GET 0  \S+"))
REMOVE = Expect(re.compile(rb"REMOVE \S+"))
DATA = Expect(b"DATA %d" % SIZE)
RECEIVED: list[Step] = [PUT, Send(b"PUT-FROM 0\n"), DATA, Read(SIZE), Expect(b"VALID")]
# A part that is too long is ended, so that the peer finds it to be wrong.
OVERLONG: list[Step] = [PUT, Send(b"PUT-FROM 21\n"), Expect(b"DATA 0"), Expect(b"VALID")]
# More than a socket and the buffers on both sides can hold.
BIG = 20_000_000
STALLED = "no progress for 1 seconds"
CUT = "the connection was closed"


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Testbed, Path]]:
    """A testbed whose client has a unix socket as the remote `odd`, and the socket's path, where nobody listens yet."""
    with temporary_environment() as environment:
        cluster = make_cluster(environment, environment.directory)
        testbed, path = Testbed(cluster, cluster.clone()), environment.directory / "socket"
        with ScriptedPeer(opening(cluster.uuid, token=SECRET), unix=path):
            parameters = (f"url=unix:{path}", "timeout=1")
            initremote(testbed.client, "odd", *parameters, sameas=cluster.uuid, env={TOKEN: SECRET})
        yield testbed, path


def driver(place: tuple[Testbed, Path]) -> Driver:
    """Return a driver with the parameters of the remote `odd`."""
    testbed, path = place
    testbed.keep_token(testbed.cluster.uuid, f"unix:{path}", SECRET)
    return testbed.driver(url=f"unix:{path}", timeout="1")


def let_in(place: tuple[Testbed, Path], *steps: Step) -> list[Step]:
    """Return a script that starts by authenticating the client."""
    beginning: list[Step] = opening(place[0].cluster.uuid, token=SECRET)
    return [*beginning, *steps]


def only_once(script: list[Step]) -> Callable[[int], list[Step]]:
    """Serve only the first connection, so that the outcome of a removal cannot be looked up."""
    return lambda number: [Expect(re.compile(b"AUTH .*")), Close()] if number else script


def nothing_happened(place: tuple[Testbed, Path], *said: str) -> None:
    """Assert that the location log is unchanged, no process is left and the token was not shown."""
    testbed, _ = place
    assert testbed.present(KEY) == set()
    testbed.environment.assert_no_process_left()
    assert not any(SECRET in words for words in said)
    assert not any("internal error" in words or "Traceback" in words for words in said)


def failure(place: tuple[Testbed, Path], script: Script | Callable[[int], Script], request: str) -> str:
    """Return what the program answers to a request that a peer keeps from succeeding."""
    with driver(place) as annex, ScriptedPeer(script, unix=place[1]):
        annex.prepare()
        answer = annex.ask(request, within=30)
    nothing_happened(place, answer, *annex.debug)
    return answer


BEGINNINGS: dict[str, tuple[list[Step] | None, str]] = {
    "is not there": (None, "cannot connect: No such file or directory"),
    "never answers": ([Stall()], f"{STALLED} while authenticating"),
    "closes at once": ([Close()], "the connection "),
    "closes after AUTH": ([Expect(re.compile(b"AUTH .*")), Close()], f"{CUT} while authenticating"),
    "sends garbage": ([Send(b"\xff\0HTTP/1.1 400 \n"), Drain()], "bad message while authenticating"),
    "sends an endless line": ([Send(b"x" * 1_000_000), Drain()], "a line of more than 65536 bytes"),
    "sends half a line": ([Send(b"AUTH-SUCC"), Stall()], f"{STALLED} while authenticating"),
    "refuses the token": (
        [Send(b"AUTH-FAILURE\n"), Drain()],
        "the server did not accept the token; set the",
    ),
    "refuses with words": ([Send(b"ERROR closed today\n"), Drain()], "refused access: closed today"),
    "is another": ([Send(f"AUTH-SUCCESS {WRONG}\n".encode()), Drain()], f"the server is repository {WRONG}, not "),
    "has no UUID": ([Send(b"AUTH-SUCCESS nobody\n"), Drain()], "bad message while authenticating"),
    "says something else": ([Send(b"SUCCESS\n"), Drain()], "expected AUTH-SUCCESS, got 'SUCCESS'"),
}


@pytest.mark.parametrize(
    "how",
    representatives(
        BEGINNINGS, "is not there", "never answers", "sends an endless line", "refuses the token", "is another"
    ),
)
def test_a_peer_that_authenticates_nobody(place: tuple[Testbed, Path], how: str) -> None:
    script, complaint = BEGINNINGS[how]
    testbed, path = place
    with driver(place) as annex:
        annex.prepare()
        requests = [
            f"CHECKPRESENT {KEY}",
            f"REMOVE {KEY}",
            f"TRANSFER STORE {KEY} {testbed.environment.home}/.gitconfig",
        ]
        if script is None:
            answers = [annex.ask(request, within=30) for request in requests]
        else:
            with ScriptedPeer(script, unix=path):
                answers = [annex.ask(request, within=30) for request in requests]
    assert answers[0].startswith(f"CHECKPRESENT-UNKNOWN {KEY} unix:")
    assert answers[1].startswith(f"REMOVE-FAILURE {KEY} unix:")
    assert answers[2].startswith(f"TRANSFER-FAILURE STORE {KEY} unix:")
    for answer in answers:
        assert complaint in answer
    nothing_happened(place, *answers, *annex.debug)


AGREEMENTS: dict[str, tuple[list[Step], str]] = {
    "no answer": ([Stall()], f"{STALLED} while agreeing on the protocol's version"),
    "a later version": ([Send(b"VERSION 5\n"), Drain()], "expected VERSION 4 or lower, got 'VERSION 5'"),
    "no number": ([Send(b"VERSION x\n"), Drain()], "bad message while agreeing on the protocol's version"),
    "the end": ([Close()], "the connection "),
}


@pytest.mark.parametrize("how", AGREEMENTS)
def test_a_peer_that_cannot_agree_on_a_version(place: tuple[Testbed, Path], how: str) -> None:
    steps, complaint = AGREEMENTS[how]
    greeting = [Send(f"AUTH-SUCCESS {place[0].cluster.uuid}\n".encode()), *steps]
    answer = failure(place, greeting, f"CHECKPRESENT {KEY}")
    assert answer.startswith(f"CHECKPRESENT-UNKNOWN {KEY} unix:")
    assert complaint in answer


CHECKS: dict[str, tuple[list[Step], str]] = {
    "stalls": ([Stall()], STALLED),
    "closes": ([Close()], CUT),
    "resets": ([Reset()], ""),
    "refuses": ([Send(b"ERROR not today\n"), Drain()], "not today"),
    "talks nonsense": ([Send(b"PERHAPS\n"), Drain()], "bad message"),
    "answers something else": ([Send(b"PUT-FROM 0\n"), Drain()], "expected SUCCESS or FAILURE, got 'PUT-FROM 0'"),
}


@pytest.mark.parametrize("how", representatives(CHECKS, "stalls", "refuses", "talks nonsense"))
def test_unknown_presence_is_not_reported_as_absent(place: tuple[Testbed, Path], how: str) -> None:
    steps, complaint = CHECKS[how]
    answer = failure(place, let_in(place, CHECK, *steps), f"CHECKPRESENT {KEY}")
    assert answer.startswith(f"CHECKPRESENT-UNKNOWN {KEY} unix:{place[1]}: checking {KEY}: ")
    assert complaint in answer


def others(number: int) -> bytes:
    """An answer that names so many repositories that nobody knows."""
    return b"SUCCESS-PLUS" + b"".join(b" 12345678-1234-4234-8234-%012d" % each for each in range(number)) + b"\n"


UPLOADS: dict[str, tuple[list[Step], str]] = {
    "stalls before PUT-FROM": ([PUT, Stall()], STALLED),
    "closes before PUT-FROM": ([PUT, Close()], CUT),
    "refuses": ([PUT, Send(b"ERROR read-only\n"), Drain()], "read-only"),
    "has more than there is, and takes it for the whole": (
        [*OVERLONG, Send(b"SUCCESS\n"), Drain()],
        "more bytes than the content has",
    ),
    "has more than there is, and keeps it": (
        [*OVERLONG, Send(b"FAILURE\n"), PUT, Send(b"PUT-FROM 21\n"), Drain()],
        "still has 21 bytes",
    ),
    "has more than there is, and stalls": ([*OVERLONG, Stall()], STALLED),
    "wants less than nothing": ([PUT, Send(b"PUT-FROM -1\n"), Drain()], "bad message"),
    "closes amid DATA": ([PUT, Send(b"PUT-FROM 0\n"), DATA, Read(7), Close()], "connection"),
    "resets amid DATA": ([PUT, Send(b"PUT-FROM 0\n"), DATA, Read(7), Reset()], "connection"),
    "stalls amid DATA": ([PUT, Send(b"PUT-FROM 0\n"), DATA, Read(7), Stall()], STALLED),
    "does not say whether it stored it": (
        [*RECEIVED, Stall()],
        f"{STALLED} while waiting to hear",
    ),
    "closes after the last byte": ([*RECEIVED, Close()], f"{CUT} while waiting to hear whether it was stored"),
    "does not store it": ([*RECEIVED, Send(b"FAILURE\n"), Drain()], "did not store it"),
    "fails with words": ([*RECEIVED, Send(b"ERROR disk full\n"), Drain()], "disk full"),
    "names no nodes": ([*RECEIVED, Send(b"SUCCESS\n"), Drain()], "stored, but not on which nodes"),
    "names nobody": ([*RECEIVED, Send(b"SUCCESS-PLUS\n"), Drain()], "stored, but not on which nodes"),
    "names what is no node": ([*RECEIVED, Send(b"SUCCESS-PLUS here there\n"), Drain()], "bad message"),
    "names a thousand others": ([*RECEIVED, Send(others(1000)), Drain()], "stored, but not on which nodes"),
    "names thousands": ([*RECEIVED, Send(others(3000)), Drain()], "a line of more than 65536 bytes"),
    "has it, but says not where": ([PUT, Send(b"ALREADY-HAVE\n"), Drain()], "stored, but not on which nodes"),
}


@pytest.mark.parametrize(
    "how",
    representatives(
        UPLOADS,
        "stalls amid DATA",
        "resets amid DATA",
        "has more than there is, and keeps it",
        "does not store it",
        "fails with words",
        "names nobody",
    ),
)
def test_a_failing_upload_is_a_failure_and_records_nothing(
    place: tuple[Testbed, Path], tmp_path: Path, how: str
) -> None:
    steps, complaint = UPLOADS[how]
    (tmp_path / "file").write_bytes(CONTENT)
    answer = failure(place, let_in(place, *steps), f"TRANSFER STORE {KEY} {tmp_path}/file")
    assert answer.startswith(f"TRANSFER-FAILURE STORE {KEY} unix:{place[1]}")
    assert complaint in answer
    assert len(answer) < 2000


DOWNLOADS: dict[str, tuple[list[Step], str]] = {
    "stalls before DATA": ([Stall()], STALLED),
    "closes before DATA": ([Close()], CUT),
    "refuses": ([Send(b"ERROR not yours\n"), Drain()], "not yours"),
    "has nothing": ([Send(b"DATA 0\nINVALID\n"), Drain()], "does not have the content"),
    "announces too much": ([Send(b"DATA 21\n"), Drain()], "announces 21 bytes from offset 0, but the content has"),
    "announces less than nothing": ([Send(b"DATA -1\n"), Drain()], "bad message"),
    "announces an absurdity": ([Send(b"DATA 99999999999999999999\n"), Drain()], "bad message"),
    "closes amid DATA": ([Send(b"DATA 20\n" + CONTENT[:7]), Close()], f"{CUT} with 13 of 20 bytes still to come"),
    "stalls amid DATA": ([Send(b"DATA 20\n" + CONTENT[:7]), Stall()], f"{STALLED} while receiving content"),
    "does not vouch for it": ([Send(b"DATA 20\n" + CONTENT + b"INVALID\n"), Drain()], "and then called it invalid"),
    "says nothing at the end": ([Send(b"DATA 20\n" + CONTENT), Stall()], f"{STALLED} while waiting to hear"),
    "talks nonsense at the end": ([Send(b"DATA 20\n" + CONTENT + b"GOOD\n"), Drain()], "bad message"),
    "gives too little": ([Send(b"DATA 7\n" + CONTENT[:7] + b"VALID\n"), Drain()], ""),
}


@pytest.mark.parametrize(
    "how",
    representatives(
        DOWNLOADS,
        "stalls amid DATA",
        "closes amid DATA",
        "refuses",
        "has nothing",
        "announces too much",
        "does not vouch for it",
    ),
)
def test_a_failing_download_is_a_failure_with_the_reason(place: tuple[Testbed, Path], tmp_path: Path, how: str) -> None:
    steps, complaint = DOWNLOADS[how]
    answer = failure(place, let_in(place, GET, *steps), f"TRANSFER RETRIEVE {KEY} {tmp_path}/file")
    assert answer.startswith(f"TRANSFER-FAILURE RETRIEVE {KEY} unix:{place[1]}")
    assert complaint in answer
    # The key has no checksum, so a download cannot resume from what has arrived.
    assert list(tmp_path.iterdir()) == []


def test_a_content_of_unknown_size_is_not_begun_if_the_disk_has_no_room_for_it(
    place: tuple[Testbed, Path], tmp_path: Path
) -> None:
    announced = Send(b"DATA %d\n" % 2**62 + bytes(100_000))
    script = let_in(place, GET, announced, Drain())
    answer = failure(place, script, f"TRANSFER RETRIEVE WORM-m1--endless {tmp_path}/file")
    assert answer.startswith("TRANSFER-FAILURE RETRIEVE WORM-m1--endless")
    assert f"announces {2**62} bytes" in answer
    assert list(tmp_path.iterdir()) == []


REMOVALS: dict[str, tuple[list[Step], str]] = {
    "stalls": ([REMOVE, Stall()], STALLED),
    "closes": ([REMOVE, Close()], CUT),
    "refuses": ([REMOVE, Send(b"ERROR append-only\n"), Drain()], "append-only"),
    "talks nonsense": ([REMOVE, Send(b"FAILURE-PLUS x\n"), Drain()], "bad message"),
}


@pytest.mark.parametrize("how", REMOVALS)
def test_a_failing_removal_forgets_no_location(place: tuple[Testbed, Path], how: str) -> None:
    steps, complaint = REMOVALS[how]
    testbed, path = place
    key = f"WORM-s{SIZE}-m1--removed-{how.replace(' ', '-')}"
    node = testbed.cluster.nodes[0].uuid
    testbed.client.annex("setpresentkey", key, node, "1")
    answer = failure(place, only_once(let_in(place, *steps)), f"REMOVE {key}")
    assert answer.startswith(f"REMOVE-FAILURE {key} unix:{path}: removing {key}: ")
    assert complaint in answer
    assert testbed.client.locations(key) == {node}


def test_a_peer_that_stops_reading_a_large_file_times_out(place: tuple[Testbed, Path], tmp_path: Path) -> None:
    key = f"WORM-s{BIG}-m1--large"
    with (tmp_path / "file").open("wb") as file:
        file.truncate(BIG)
    script = let_in(place, PUT, Send(b"PUT-FROM 0\n"), Expect(b"DATA %d" % BIG), Read(1_000_000), Stall())
    with driver(place) as annex, ScriptedPeer(script, unix=place[1]):
        annex.prepare()
        answer = annex.ask(f"TRANSFER STORE {key} {tmp_path}/file", within=30)
    assert f"{STALLED} while sending content" in answer
    nothing_happened(place, answer)


def test_a_failed_request_does_not_affect_the_next(place: tuple[Testbed, Path]) -> None:
    def script(connection: int) -> Script:
        return let_in(
            place, CHECK, *([Close()] if connection == 0 else [Send(b"SUCCESS\n"), CHECK, Send(b"FAILURE\n")])
        )

    with driver(place) as annex, ScriptedPeer(script, unix=place[1]) as peer:
        annex.prepare()
        assert annex.ask(f"CHECKPRESENT {KEY}2").startswith("CHECKPRESENT-UNKNOWN")
        assert annex.ask(f"CHECKPRESENT {KEY}2").startswith("CHECKPRESENT-SUCCESS")
        assert annex.ask(f"CHECKPRESENT {KEY}2").startswith("CHECKPRESENT-FAILURE")
    assert peer.connections == 2


def scripts_running() -> bool:
    """Whether any connection to a scripted peer is still open on its side."""
    return any(thread.name.startswith("scripted peer ") for thread in threading.enumerate())


def test_a_connection_lost_while_idle_is_reopened_once(place: tuple[Testbed, Path]) -> None:
    with (
        driver(place) as annex,
        ScriptedPeer(let_in(place, CHECK, Send(b"FAILURE\n"), Close()), unix=place[1]) as peer,
    ):
        annex.prepare()
        for times in range(1, 4):
            assert annex.ask(f"CHECKPRESENT {KEY}").startswith("CHECKPRESENT-FAILURE")
            assert peer.connections == times
            # Until its end has arrived, nobody can know of it.
            assert wait_until(lambda: not scripts_running())
    nothing_happened(place)


# The same with git-annex in between


@pytest.mark.slow
def test_git_annex_reports_a_stalled_peer(place: tuple[Testbed, Path]) -> None:
    """Every command ends by itself, with a clear error, and changes nothing."""
    testbed, path = place
    client, node = testbed.client, testbed.cluster.nodes[0].uuid
    key = client.add("file", CONTENT)
    get = Send(b"DATA 20\n" + CONTENT[:7])
    away = client.add("away", b"on a node, they say!")
    client.annex("drop", "--force", "away")
    client.annex("setpresentkey", away, node, "1")
    commands: list[tuple[tuple[str, ...], list[Step], int]] = [
        (("copy", "--to", "odd", "file"), [CHECK, Stall()], 1),
        (("copy", "--to", "odd", "file"), [CHECK, Send(b"FAILURE\n"), PUT, Stall()], 1),
        (("get", "--from", "odd", "away"), [GET, get, Stall()], 1),
        (("checkpresentkey", key, "odd"), [CHECK, Stall()], 100),
        (("fsck", "--from", "odd", "away"), [CHECK, Stall()], 1),
        (("drop", "--force", "--from", "odd", "away"), [REMOVE, Stall()], 1),
    ]
    for command, steps, code in commands:
        script = let_in(place, *steps)
        with ScriptedPeer(only_once(script) if "away" in command else script, unix=path):
            # By itself, git-annex tries again what made progress.
            done = client.annex(*command, "-c", "annex.forward-retry=0", "--debug", check=False)
        assert done.returncode == code, text(done)
        assert f"unix:{path}: " in text(done)
        assert STALLED in text(done)
        assert client.locations(key) == {client.uuid}
        assert client.locations(away) == {node}
        nothing_happened(place, text(done))


def test_the_token_is_not_visible_while_a_peer_stalls(place: tuple[Testbed, Path]) -> None:
    """Neither in the arguments of processes nor in the environment of those that need it not."""
    testbed, path = place
    with ScriptedPeer(let_in(place, CHECK, Stall()), unix=path) as peer:
        command = ("git", "annex", "checkpresentkey", KEY, "odd", "--debug")
        with testbed.environment.popen(*command, cwd=testbed.client.path, stderr=subprocess.PIPE) as process:
            assert wait_until(lambda: len(peer.received) == 3, within=20)
            running = testbed.environment.processes()
            assert any("git-annex-remote-cluster" in each.command for each in running)
            assert not any(SECRET in each.command for each in running)
            for each in running:
                assert SECRET.encode() not in Path(f"/proc/{each.pid}/environ").read_bytes()
            out, err = process.communicate(timeout=30)
    assert SECRET.encode() not in out + err
    nothing_happened(place)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ssh", *only_in_all("tcp", "directory")])
def test_stalls_and_disconnects_are_handled_over_every_transport(environment: Environment, kind: str) -> None:
    cluster = make_cluster(environment, environment.directory, nodes=1)
    client, node = cluster.clone(), cluster.nodes[0]
    key = client.add("file", CONTENT)
    sudden: list[list[Step]] = [[Stall()], [Close()], [Send(b"nonsense\n"), Drain()]]
    greeting = opening(node.uuid, token=SECRET if kind == "tcp" else None)

    def script(connection: int) -> Script:
        # The first is initremote's.
        return [*greeting, *([CHECK, *sudden[connection - 1]] if connection else [])]

    with contextlib.ExitStack() as stack:
        if kind == "tcp":
            peer = stack.enter_context(ScriptedPeer(script, tcp=True))
            url = f"tcp://127.0.0.1:{peer.port}"
        else:
            socket = environment.directory / "socket"
            peer = stack.enter_context(ScriptedPeer(script, unix=socket))
            scripted_shell(environment, socket)
            url = str(node.path)
            if kind == "ssh":
                server = stack.enter_context(SshServer(environment))
                environment.env |= server.variables
                url = server.url(node.path)
        initremote(client, "odd", f"url={url}", "timeout=1", sameas=node.uuid, env={TOKEN: SECRET})
        for complaint in (STALLED, "connection", "bad message"):
            done = client.annex("checkpresentkey", key, "odd", check=False)
            assert done.returncode == 100
            assert complaint in text(done)
            assert client.locations(key) == {client.uuid}
            environment.assert_no_process_left()
