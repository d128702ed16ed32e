"""However git-annex ends, so does the program, and everything that it has started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.remote.testbed import Testbed, initremote
from tests.support.environment import Environment
from tests.support.peers import Expect, ScriptedPeer, Send, Stall, opening
from tests.support.processes import wait_until
from tests.support.repositories import make_cluster
from tests.support.shells import scripted_shell
from tests.support.slow import only_in_all

PUT = Expect(re.compile(rb"PUT  \S+"))
CHECK = Expect(re.compile(rb"CHECKPRESENT \S+"))
# Far less than the timeout of the remote, which is left at a minute.
SOON = 15.0


@pytest.fixture
def stalling(environment: Environment) -> tuple[Testbed, Path]:
    """A testbed whose only node is a git-annex-shell that stalls on an upload; and the path of its peer's socket."""
    cluster = make_cluster(environment, environment.directory, nodes=1)
    testbed = Testbed(cluster, cluster.clone())
    initremote(testbed.client, "node", f"url={cluster.nodes[0].path}", sameas=cluster.nodes[0].uuid)
    path = environment.directory / "peer"
    scripted_shell(environment, path)
    return testbed, path


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, *only_in_all(signal.SIGINT, signal.SIGHUP)])
def test_killing_git_annex_during_an_upload_leaves_no_process(
    stalling: tuple[Testbed, Path], how: signal.Signals
) -> None:
    testbed, path = stalling
    node = testbed.cluster.nodes[0]
    key = testbed.client.add("f", b"never arrives")
    script = [*opening(node.uuid), CHECK, Send(b"FAILURE\n"), PUT, Send(b"PUT-FROM 0\n"), Stall()]
    with ScriptedPeer(script, unix=path) as peer:
        command = ("git-annex", "copy", "--to", "node", "f")
        with testbed.environment.popen(*command, cwd=testbed.client.path, stderr=subprocess.PIPE) as annex:
            assert wait_until(lambda: len(peer.received) == 3, within=20)
            running = {process.command.split("/")[-1] for process in testbed.environment.processes()}
            assert any("git-annex-remote-cluster" in command for command in running)
            annex.send_signal(how)
            _, complaints = annex.communicate(timeout=30)
        testbed.environment.assert_no_process_left(within=SOON)
    assert b"Traceback" not in complaints
    assert testbed.client.locations(key) == {testbed.client.uuid}


def test_an_interrupt_from_the_terminal_ends_everything_without_a_traceback(stalling: tuple[Testbed, Path]) -> None:
    """It goes to every process at once."""
    testbed, path = stalling
    testbed.client.add("f", b"never arrives")
    with ScriptedPeer([*opening(testbed.cluster.nodes[0].uuid), CHECK, Stall()], unix=path) as peer:
        command = ("git", "annex", "copy", "--to", "node", "f")
        with testbed.environment.popen(*command, cwd=testbed.client.path, stderr=subprocess.PIPE) as annex:
            assert wait_until(lambda: len(peer.received) == 2, within=20)
            for process in testbed.environment.processes():
                # One may end because of what came to another.
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)
            _, complaints = annex.communicate(timeout=30)
        testbed.environment.assert_no_process_left(within=SOON)
    assert b"Traceback" not in complaints
    assert b"KeyboardInterrupt" not in complaints


@pytest.mark.parametrize("extensions", ["EXTENSIONS INFO", "EXTENSIONS INFO ASYNC"])
def test_the_program_exits_when_git_annex_closes_its_input(testbed: Testbed, extensions: str) -> None:
    with testbed.driver() as annex:
        annex.ask(extensions)
        prefix = "J 1 " if "ASYNC" in extensions else ""
        annex.say(f"{prefix}PREPARE")
        while not (line := annex.read()).endswith("PREPARE-SUCCESS"):
            word, _, setting = line.removeprefix(prefix).partition(" ")
            value = testbed.cluster.uuid if word == "GETUUID" else annex.config.get(setting, "")
            annex.say(f"{prefix}VALUE {value}")
        assert annex.hang_up(within=SOON) == 0


@pytest.mark.parametrize("before", [b"", b"CHECKPRESENT WORM--f\n"], ids=["simple", "looping"])
def test_an_endless_line_is_not_buffered_without_limit(testbed: Testbed, before: bytes) -> None:
    endless = before + b"x" * (2 * 1024 * 1024)
    done = testbed.environment.run("git-annex-remote-cluster", cwd=testbed.client.path, input=endless)
    (complaint,) = done.stderr.splitlines()
    assert b"1048576 bytes" in complaint


def test_connections_are_closed_and_their_processes_end(testbed: Testbed) -> None:
    with testbed.driver() as annex:
        annex.prepare()
        assert annex.ask("CHECKPRESENT WORM-s1-m1--x") == "CHECKPRESENT-FAILURE WORM-s1-m1--x"
        shells = [process for process in testbed.environment.processes() if "p2pstdio" in process.command]
        assert shells
        assert annex.hang_up(within=SOON) == 0
        left = {process.pid for process in testbed.environment.processes()}
        assert not left & {process.pid for process in shells}
