"""A hung disk blocks nothing else."""

from __future__ import annotations

import subprocess
import sys
import threading

import anyio
import pytest

from cluster_remote.annex.disk import ask_disk

pytestmark = pytest.mark.anyio


async def test_a_disk_call_returns_its_result_or_raises_its_error() -> None:
    assert await ask_disk(len, "four") == 4
    with pytest.raises(FileNotFoundError):
        await ask_disk(open, "/nothing/is/here")


async def test_a_disk_call_can_be_abandoned_and_its_late_answer_is_ignored() -> None:
    answered = threading.Event()
    with anyio.move_on_after(0.05) as waiting:
        await ask_disk(answered.wait, 30)
    assert waiting.cancelled_caught
    answered.set()
    assert await ask_disk(len, "") == 0


async def test_a_hung_disk_does_not_keep_the_program_from_exiting() -> None:
    program = (
        "import anyio, time\n"
        "from cluster_remote.annex.disk import ask_disk\n"
        "async def main():\n"
        "    with anyio.move_on_after(0.01):\n"
        "        await ask_disk(time.sleep, 300)\n"
        "anyio.run(main)\n"
    )
    await anyio.to_thread.run_sync(lambda: subprocess.run([sys.executable, "-c", program], timeout=60, check=True))
