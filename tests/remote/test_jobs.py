"""The ASYNC extension: one process for all of git-annex's jobs."""

from __future__ import annotations

import io
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from cluster_remote.remote.protocol import AnnexMaster, Questions
from tests.remote.driver import EXTENSIONS, Driver
from tests.remote.testbed import Testbed, messages
from tests.support.peers import Expect, ScriptedPeer, Stall, opening


class Jobs:
    """git-annex's side of several jobs over one driver. It refuses the questions in `refused`."""

    def __init__(self, driver: Driver, refused: str = "") -> None:
        self.driver = driver
        self.refused = refused
        self.asked: list[str] = []
        self.debug: list[str] = []
        assert "ASYNC" in driver.ask(EXTENSIONS).split()

    def say(self, job: int, line: str) -> None:
        self.driver.say(f"J {job} {line}")

    def answer(self) -> tuple[int, str]:
        """Return the next answer of any job; answer each job's questions meanwhile."""
        while True:
            answered = self._take()
            if answered is not None:
                return answered

    def answer_until(self, condition: Callable[[], bool]) -> None:
        """Answer the jobs' questions until a condition holds; no job may finish before."""
        while not condition():
            assert self._take() is None

    def _take(self) -> tuple[int, str] | None:
        tag, number, line = self.driver.read().split(" ", 2)
        assert tag == "J"
        word, _, rest = line.partition(" ")
        known = {"GETCONFIG": self.driver.config.get(rest, ""), "GETUUID": self.driver.uuid}
        known |= {"GETGITDIR": ".git", "GETGITREMOTENAME": "driven"}
        if word in known:
            self.asked.append(word)
            if word == self.refused:
                # Without a number, as git-annex does it.
                self.driver.say(f"ERROR cannot send {word} here")
                return None
            self.say(int(number), f"VALUE {known[word]}")
        elif word == "DEBUG":
            self.debug.append(rest)
        elif word not in {"INFO", "PROGRESS"}:
            return int(number), line
        return None


def test_copying_with_jobs_starts_one_process_and_stores_everywhere(testbed: Testbed, tmp_path: Path) -> None:
    started = tmp_path / "started"
    environment = testbed.client.environment
    shim = environment.bin / "git-annex-remote-cluster"
    real = Path(
        environment.run("sh", "-c", "command -v git-annex-remote-cluster", cwd=tmp_path).stdout.decode().strip()
    )
    shim.write_text(f'#!/bin/sh\necho $$ >> {started}\nexec {real} "$@"\n')
    shim.chmod(0o755)
    keys = [testbed.client.add(f"job{number}", b"content of job %d" % number) for number in range(12)]
    try:
        testbed.client.annex("copy", "-J4", "--to", "mycl", *(f"job{number}" for number in range(12)))
        assert len(started.read_text().split()) == 1
    finally:
        shim.unlink()
    for key in keys:
        assert testbed.present(key) == testbed.nodes
        assert all(node.has_object(key) for node in testbed.cluster.nodes)


def test_each_job_is_answered_under_its_own_number(testbed: Testbed) -> None:
    present = testbed.client.add("numbered", b"numbered")
    testbed.client.annex("copy", "--to", "mycl", "numbered")
    absent = "SHA256E-s4--" + "0" * 64
    with testbed.driver() as driver:
        jobs = Jobs(driver)
        jobs.say(1, "PREPARE")
        assert jobs.answer() == (1, "PREPARE-SUCCESS")
        for job in range(1, 9):
            jobs.say(job, f"CHECKPRESENT {present if job % 2 else absent}")
        answers = dict(jobs.answer() for _ in range(8))
    assert answers == {
        job: f"CHECKPRESENT-SUCCESS {present}" if job % 2 else f"CHECKPRESENT-FAILURE {absent}" for job in range(1, 9)
    }


def test_parameters_are_asked_for_once_whichever_job_needs_them(testbed: Testbed) -> None:
    key = "SHA256E-s4--" + "1" * 64
    with testbed.driver() as driver:
        jobs = Jobs(driver)
        for job in (3, 4, 5):
            jobs.say(job, f"CHECKPRESENT {key}")
        assert sorted(jobs.answer()[0] for _ in range(3)) == [3, 4, 5]
        assert jobs.asked.count("GETUUID") == 1


def test_a_failing_job_does_not_disturb_the_others(testbed: Testbed, tmp_path: Path) -> None:
    key = testbed.client.add("undisturbed", b"undisturbed")
    target = testbed.client.path / "retrieved"
    testbed.client.annex("copy", "--to", "mycl", "undisturbed")
    with testbed.driver() as driver:
        jobs = Jobs(driver)
        jobs.say(1, f"TRANSFER STORE {key} {tmp_path}/nothing-there")
        jobs.say(2, f"TRANSFER RETRIEVE {key} {target}")
        jobs.say(3, "NOSUCHREQUEST")
        answers = dict(jobs.answer() for _ in range(3))
    assert answers[2] == f"TRANSFER-SUCCESS RETRIEVE {key}"
    assert target.read_bytes() == b"undisturbed"
    assert answers[3] == "UNSUPPORTED-REQUEST"


def test_an_error_from_git_annex_to_a_question_fails_each_request_that_needs_it(testbed: Testbed) -> None:
    key = "SHA256E-s4--" + "3" * 64
    with testbed.driver() as driver:
        jobs = Jobs(driver, refused="GETGITDIR")
        for job in range(1, 5):
            jobs.say(job, f"CHECKPRESENT {key}")
        answers = dict(jobs.answer() for _ in range(4))
        assert answers.keys() == {1, 2, 3, 4}
        for answer in answers.values():
            assert answer.startswith(f"CHECKPRESENT-UNKNOWN {key} ")
            assert "GETGITDIR" in answer
        jobs.refused = ""
        jobs.say(2, f"CHECKPRESENT {key}")
        assert jobs.answer() == (2, f"CHECKPRESENT-FAILURE {key}")


def test_an_untagged_error_ends_all_jobs_and_the_program(testbed: Testbed) -> None:
    with testbed.driver() as driver:
        jobs = Jobs(driver)
        jobs.say(1, "PREPARE")
        assert jobs.answer() == (1, "PREPARE-SUCCESS")
        jobs.say(1, "TRANSFER STORE")
        assert driver.read().startswith("ERROR ")
        assert driver.read() == ""
        assert driver.process.wait(20) == 0


def test_debug_messages_are_tagged_with_their_job(testbed: Testbed) -> None:
    testbed.client.add("traced", b"traced")
    done = testbed.client.annex("copy", "-J3", "--debug", "--to", "mycl", "traced")
    assert any(message.startswith("> PUT") for message in messages(done))


@pytest.mark.parametrize("number_of_jobs", [1, 4])
def test_running_requests_are_abandoned_at_once_when_git_annex_disconnects(
    testbed: Testbed, number_of_jobs: int
) -> None:
    script = [*opening(testbed.cluster.uuid, token="secret"), Expect(re.compile(b"CHECKPRESENT .*")), Stall()]
    with (
        ScriptedPeer(script, tcp=True) as peer,
        testbed.driver(url=f"tcp://127.0.0.1:{peer.port}") as driver,
    ):
        testbed.keep_token(testbed.cluster.uuid, f"tcp://127.0.0.1:{peer.port}", "secret")
        jobs = Jobs(driver)
        for job in range(1, number_of_jobs + 1):
            jobs.say(job, "CHECKPRESENT SHA256E-s4--" + "2" * 64)
        jobs.answer_until(lambda: sum("P2P > CHECKPRESENT" in line for line in jobs.debug) == number_of_jobs)
        # Far less than the minute that the remote would wait for the peer.
        driver.hang_up(within=15)


def test_a_bug_in_the_program_fails_its_job_with_a_message() -> None:
    output = io.StringIO()
    master = AnnexMaster(cast(io.TextIOWrapper, output), Questions())

    class Broken:
        def prepare(self) -> None:
            raise ZeroDivisionError("nobody thought of this")

    master.LinkRemote(Broken())
    assert master.answer("PREPARE\n") is False
    (line,) = output.getvalue().splitlines()
    assert line.startswith("ERROR ")
    assert "ZeroDivisionError: nobody thought of this" in line


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_waiting_for_git_annexs_reply_ends_the_program(
    testbed: Testbed, how: signal.Signals
) -> None:
    with testbed.driver() as annex:
        annex.ask(EXTENSIONS)
        annex.say("J 1 CHECKPRESENT WORM-s1-m1--absent")
        assert annex.read().startswith("J 1 GET")
        annex.process.send_signal(how)
        assert annex.process.wait(15) != 0
