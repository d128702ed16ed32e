"""What a command that was interrupted comes to, whatever else happens in the same moment."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import anyio
import anyio.lowlevel
import pytest

from cluster_remote.cli.interrupts import keeping_handlers, only_the_first_counts, run


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    with keeping_handlers():
        only_the_first_counts()
        yield


@pytest.mark.parametrize("times", [1, 2])
def test_the_end_of_what_it_talks_to_is_a_consequence(times: int) -> None:
    async def talk() -> None:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        raise ConnectionError("closed")

    with pytest.raises(KeyboardInterrupt):
        run(talk)


def test_a_command_that_reports_the_consequence_was_interrupted_all_the_same() -> None:
    async def talk() -> str:
        signal.raise_signal(signal.SIGTERM)
        return "the connection was closed"

    with pytest.raises(KeyboardInterrupt):
        run(talk)


def test_waiting_ends_and_cleaning_up_is_not_cut_short() -> None:
    steps = []

    async def wait() -> None:
        signal.raise_signal(signal.SIGINT)
        try:
            await anyio.sleep(60)
        finally:
            signal.raise_signal(signal.SIGINT)
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            steps.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        run(wait)
    assert steps == ["cleaned up"]


def test_without_a_signal_it_is_the_function_that_decides() -> None:
    async def fail() -> None:
        raise ConnectionError("closed")

    async def succeed(value: int) -> int:
        return value

    with pytest.raises(ConnectionError, match="closed"):
        run(fail)
    assert run(succeed, 3) == 3
