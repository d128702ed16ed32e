"""Run a user's command in the foreground: it has the terminal and gets Ctrl-C."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence

import anyio

from cluster_remote.annex import child
from cluster_remote.cli.interrupts import SIGNALS, keeping_handlers

__all__ = ["run_in_foreground", "until_interrupted"]

# The codes that shells use.
_CANNOT_RUN, _NOT_FOUND = 126, 127
# Seconds for a command to end after a signal, before it is killed.
_GRACE = 10.0


async def run_in_foreground(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, stdout_to_stderr: bool = False
) -> int:
    """Run a command on this terminal to its end; return the exit code that a shell would report.

    Ctrl-C goes to the command, which decides how to react; other signals that would end us are forwarded. Cancelling
    ends the command, by force if necessary.
    """
    with keeping_handlers(), anyio.open_signal_receiver(*SIGNALS) as signals:
        try:
            process = await anyio.open_process(
                list(command), stdin=None, stdout=sys.stderr if stdout_to_stderr else None, stderr=None, env=env
            )
        except OSError as error:
            print(f"cluster-remote: cannot run {command[0]!r}: {error.strerror}", file=sys.stderr)
            return _NOT_FOUND if isinstance(error, FileNotFoundError) else _CANNOT_RUN
        try:
            async with anyio.create_task_group() as tasks:

                async def forward_signals() -> None:
                    async for number in signals:
                        # A terminal sends Ctrl-C to all programs that run on it, including this command.
                        if not (number == signal.SIGINT and sys.stdin.isatty()):
                            child.send_signal(process.pid, number, group=False)

                tasks.start_soon(forward_signals)
                code = await process.wait()
                tasks.cancel_scope.cancel()
        except BaseException:
            await child.end(process, _GRACE, group=False)
            raise
    return code if code >= 0 else 128 - code


async def until_interrupted() -> None:
    """Wait until the user or a process supervisor asks us to end."""
    with keeping_handlers(), anyio.open_signal_receiver(*SIGNALS) as signals:
        async for _number in signals:
            return
