"""An interrupted command ends as interrupted, whatever else happens at the same moment."""

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
def test_a_connection_lost_after_an_interrupt_counts_as_the_interrupt(times: int) -> None:
    async def talk() -> None:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        raise ConnectionError("closed")

    with pytest.raises(KeyboardInterrupt):
        run(talk)


def test_a_failure_reported_after_an_interrupt_counts_as_the_interrupt() -> None:
    async def talk() -> str:
        signal.raise_signal(signal.SIGTERM)
        return "the connection was closed"

    with pytest.raises(KeyboardInterrupt):
        run(talk)


def test_an_interrupt_ends_waiting_but_not_cleanup() -> None:
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


def test_without_a_signal_the_functions_result_is_the_exit_code() -> None:
    async def fail() -> None:
        raise ConnectionError("closed")

    async def succeed(value: int) -> int:
        return value

    with pytest.raises(ConnectionError, match="closed"):
        run(fail)
    assert run(succeed, 3) == 3
