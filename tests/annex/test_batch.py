"""Batch processes whose child dies, stalls or writes too much, or whose caller gives up."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from cluster_remote.annex.batch import BatchProcess
from cluster_remote.annex.errors import BatchFailed, CommandFailed
from tests.support.environment import Environment

from .conftest import UUIDS

pytestmark = pytest.mark.anyio

# Answers each line with the line, a count and its own process id, and does what some lines ask for.
ECHO = """
import os, sys, time
count = 0
for line in sys.stdin:
    line = line.rstrip("\\n")
    count += 1
    if line == "die":
        print("cannot go on", file=sys.stderr)
        sys.exit(3)
    if line == "half":
        sys.stdout.write("half an ans"); sys.stdout.flush(); time.sleep(600)
    if line == "stall":
        time.sleep(600)
    if line == "rant":
        sys.stderr.write("x" * 1_000_000 + " the end"); sys.stderr.flush()
    if line == "flood":
        sys.stdout.write("y" * 3_000_000); sys.stdout.flush()
    print(line, count, os.getpid(), flush=True)
with open("ended", "w") as f:
    f.write("orderly")
"""


@pytest.fixture
def directory(environment: Environment) -> Iterator[Path]:
    with environment.applied(environment.directory):
        yield environment.directory


def echo(directory: Path, source: str = ECHO) -> BatchProcess:
    return BatchProcess([sys.executable, "-c", source], cwd=directory, env=os.environ)


async def test_one_child_answers_many_questions(directory: Path) -> None:
    async with echo(directory) as batch:
        assert batch.pid is None
        answers = [(await batch.ask(b"q%d" % n, 10)).split() for n in range(50)]
    assert [a[:2] for a in answers] == [[b"q%d" % n, b"%d" % (n + 1)] for n in range(50)]
    assert len({pid for _, _, pid in answers}) == 1


async def test_concurrent_questions_get_their_own_answers(directory: Path) -> None:
    got: dict[int, bytes] = {}

    async with echo(directory) as batch, anyio.create_task_group() as tasks:

        async def ask(n: int) -> None:
            got[n] = (await batch.ask(b"q%d" % n, 10)).split()[0]

        for n in range(20):
            tasks.start_soon(ask, n)
    assert got == {n: b"q%d" % n for n in range(20)}


async def test_questions_that_wait_are_asked_together(directory: Path) -> None:
    """The child sees them in one piece: it answers with the number of bytes that it could read at once."""
    source = "import os\nwhile data := os.read(0, 9999):\n    os.write(1, b'%d\\n' % len(data) * data.count(b'\\n'))"
    got: list[list[bytes]] = []

    async with echo(directory, source) as batch, anyio.create_task_group() as tasks:

        async def ask(*lines: bytes) -> None:
            got.append(await batch.ask_all(lines, 10))

        for lines in ([b"first"], [b"a", b"b"], [b"c"]):
            tasks.start_soon(ask, *lines)
    assert got == [[b"6"], [b"6", b"6"], [b"6"]]


async def test_a_question_that_kills_the_child_does_not_fail_those_asked_with_it(directory: Path) -> None:
    got: dict[bytes, bytes] = {}

    async with echo(directory) as batch, anyio.create_task_group() as tasks:

        async def ask(question: bytes) -> None:
            try:
                got[question] = (await batch.ask(question, 10)).split()[0]
            except BatchFailed as error:
                got[question] = error.complaint.encode()

        for question in (b"first", b"good", b"die", b"better"):
            tasks.start_soon(ask, question)
    assert got == {b"first": b"first", b"good": b"good", b"die": b"cannot go on", b"better": b"better"}


async def test_a_caller_that_gives_up_does_not_fail_those_asked_with_it(directory: Path) -> None:
    source = ECHO.replace("time.sleep(600)", "time.sleep(1)")
    got: list[bytes] = []

    async with echo(directory, source) as batch, anyio.create_task_group() as tasks:

        async def ask(question: bytes, seconds: float) -> None:
            with anyio.move_on_after(seconds):
                got.append((await batch.ask(question, 10)).split()[0])

        tasks.start_soon(ask, b"first", 10)
        tasks.start_soon(ask, b"stall", 0.5)
        tasks.start_soon(ask, b"good", 10)
    assert got == [b"first", b"good"]


async def test_many_lines_are_answered_in_order(directory: Path) -> None:
    lines = [b"%d-" % n + b"z" * 200 for n in range(2000)]
    async with echo(directory) as batch:
        answers = await batch.ask_all(lines, 20)
    assert [a.split()[0] for a in answers] == lines


async def test_closing_lets_the_child_exit(directory: Path) -> None:
    async with echo(directory) as batch:
        await batch.ask(b"q", 10)
    assert (directory / "ended").read_text() == "orderly"


async def test_closing_kills_a_child_that_does_not_exit(directory: Path) -> None:
    batch = echo(directory, ECHO + "\ntime.sleep(600)")
    await batch.ask(b"q", 10)
    pid = batch.pid
    assert pid is not None
    await batch.aclose(grace=0.3)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_closing_under_cancellation_kills_the_child_at_once(directory: Path) -> None:
    batch = echo(directory, ECHO + "\ntime.sleep(600)")
    await batch.ask(b"q", 10)
    pid = batch.pid
    assert pid is not None
    with anyio.fail_after(10), anyio.CancelScope() as scope:
        scope.cancel()
        await batch.aclose()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_closing_twice_or_unused_is_harmless(directory: Path) -> None:
    batch = echo(directory)
    await batch.aclose()
    await batch.aclose()
    with pytest.raises(BatchFailed, match="closed"):
        await batch.ask(b"q", 10)


async def test_a_child_that_died_while_idle_is_restarted(directory: Path) -> None:
    async with echo(directory) as batch:
        first = (await batch.ask(b"q", 10)).split()[2]
        os.kill(int(first), signal.SIGKILL)
        answer = (await batch.ask(b"again", 10)).split()
    assert answer[:2] == [b"again", b"1"]
    assert answer[2] != first


async def test_a_child_that_dies_on_a_question_raises_with_its_stderr_tail(directory: Path) -> None:
    async with echo(directory) as batch:
        await batch.ask(b"q", 10)
        with pytest.raises(BatchFailed, match="exit code 3") as caught:
            await batch.ask(b"die", 10)
        assert caught.value.complaint == "cannot go on"
        assert "cannot go on" in str(caught.value)
        assert (await batch.ask(b"q", 10)).split()[1] == b"1"


async def test_a_silent_child_times_out(directory: Path) -> None:
    async with echo(directory) as batch:
        await batch.ask(b"q", 10)
        with pytest.raises(BatchFailed, match=r"no answer within 0\.5 seconds"):
            await batch.ask(b"stall", 0.5)
        assert (await batch.ask(b"q", 10)).split()[:2] == [b"q", b"1"]


@pytest.mark.parametrize("question", [b"half", b"stall"])
async def test_a_cancelled_question_does_not_affect_the_next(directory: Path, question: bytes) -> None:
    async with echo(directory) as batch:
        with anyio.move_on_after(0.5) as scope:
            await batch.ask(question, 60)
        assert scope.cancelled_caught
        assert (await batch.ask(b"next", 10)).split()[:2] == [b"next", b"1"]


async def test_a_queued_question_keeps_its_deadline(directory: Path) -> None:
    """It queues behind another one, whose deadline is later."""
    async with echo(directory) as batch, anyio.create_task_group() as tasks:

        async def stall() -> None:
            with anyio.move_on_after(30):
                await batch.ask(b"stall", 60)

        tasks.start_soon(stall)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(BatchFailed, match="no answer within"), anyio.fail_after(10):
            await batch.ask(b"q", 0.3)
        tasks.cancel_scope.cancel()


async def test_stderr_does_not_block_the_child_and_only_its_tail_is_kept(directory: Path) -> None:
    async with echo(directory) as batch:
        for _ in range(3):
            assert (await batch.ask(b"rant", 10)).startswith(b"rant")
        with pytest.raises(BatchFailed) as caught:
            await batch.ask(b"stall", 1)
    assert caught.value.complaint.endswith("x the end")
    assert len(caught.value.complaint) <= 4096


async def test_an_endless_answer_is_cut_off(directory: Path) -> None:
    async with echo(directory) as batch:
        with pytest.raises(BatchFailed, match="longer than"):
            await batch.ask(b"flood", 10)
        assert (await batch.ask(b"q", 10)).split()[:2] == [b"q", b"1"]


async def test_control_characters_from_the_child_do_not_reach_the_terminal(directory: Path) -> None:
    batch = echo(directory, "import sys; sys.exit('\\x1b[2Jcleared')")
    async with batch:
        with pytest.raises(BatchFailed) as caught:
            await batch.ask(b"q", 10)
    assert caught.value.complaint == r"\x1b[2Jcleared"


async def test_a_missing_program_is_named(directory: Path) -> None:
    batch = BatchProcess(["no-such-program", "x"], cwd=directory, env=os.environ)
    with pytest.raises(CommandFailed, match="no-such-program x: cannot be started"):
        await batch.ask(b"q", 10)


async def test_a_question_with_a_newline_is_refused(directory: Path) -> None:
    async with echo(directory) as batch:
        with pytest.raises(ValueError, match="one line"):
            await batch.ask(b"a\nb", 10)


async def test_git_annex_is_restarted_after_a_line_it_cannot_read(environment: Environment) -> None:
    from tests.support.repositories import make_repository

    real = make_repository(environment, environment.directory / "repo", "the desk")
    argv = ("git", "annex", "setpresentkey", "--batch", "--json")
    good = b"WORM--a %b 1" % str(UUIDS[0]).encode()
    async with BatchProcess(argv, cwd=real.path, env=environment.env) as batch:
        assert b'"success":true' in await batch.ask(good, 20)
        with pytest.raises(BatchFailed, match="Expected: key uuid value"):
            await batch.ask(b"nonsense", 20)
        assert b'"success":true' in await batch.ask(good, 20)
