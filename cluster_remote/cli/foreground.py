"""A command of the user's that runs in our place for a while: it has the terminal, and gets the user's Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence

import anyio
from anyio.abc import Process

from cluster_remote.cli.interrupts import keeping_handlers

__all__ = ["CANNOT_RUN", "NOT_FOUND", "run_in_foreground", "until_interrupted"]

# As shells have it.
CANNOT_RUN, NOT_FOUND = 126, 127
# Seconds that a command has to end after it was told to, before it is killed.
_GRACE = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_in_foreground(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, stdout_to_stderr: bool = False
) -> int:
    """Runs a command on our own terminal to its end, and gives the exit code that a shell would give.

    Ctrl-C goes to the command, which decides what becomes of it; other signals that would end us are handed on. A
    cancellation ends the command, by force if it has to be.
    """
    with keeping_handlers(), anyio.open_signal_receiver(*_SIGNALS) as signals:
        try:
            process = await anyio.open_process(
                list(command), stdin=None, stdout=sys.stderr if stdout_to_stderr else None, stderr=None, env=env
            )
        except OSError as error:
            print(f"cluster-remote: {command[0]!r} cannot be run: {error.strerror}", file=sys.stderr)
            return NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN
        try:
            async with anyio.create_task_group() as tasks:

                async def hand_on() -> None:
                    async for number in signals:
                        # A terminal gives Ctrl-C to everybody who runs on it, the command among them.
                        if not (number == signal.SIGINT and sys.stdin.isatty()):
                            _signal(process, number)

                tasks.start_soon(hand_on)
                code = await process.wait()
                tasks.cancel_scope.cancel()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await _end(process)
            raise
    return code if code >= 0 else 128 - code


async def until_interrupted() -> None:
    """Waits until the user, or whoever is in charge of processes, wants us to end."""
    with keeping_handlers(), anyio.open_signal_receiver(*_SIGNALS) as signals:
        async for _number in signals:
            return


def _signal(process: Process, number: int) -> None:
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return


async def _end(process: Process) -> None:
    _signal(process, signal.SIGTERM)
    with anyio.move_on_after(_GRACE):
        await process.wait()
        return
    _signal(process, signal.SIGKILL)
    await process.wait()
