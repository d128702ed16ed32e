"""Ctrl-C: the first one ends a command cleanly, and later ones do not interfere.

asyncio cancels the command at the first one. At the second it raises KeyboardInterrupt wherever its event loop happens
to be. That can skip the very step that would have ended the command, which then hangs, or interrupt a cleanup, which
then leaves directories and processes behind. Users press Ctrl-C twice, and programs that start others often forward a
signal that the terminal has already sent to all of them. git-annex reacts to Ctrl-C with a SIGTERM to its process
group, which includes this program if git-annex started it; so SIGTERM counts as the same request. So does SIGHUP, when
the terminal is closed.

Every cleanup has a deadline, so nobody needs to press Ctrl-C twice.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ParamSpec, TypeVar

__all__ = ["SIGNALS", "Interrupted", "ignore_from_now_on", "keeping_handlers", "only_the_first_counts", "run"]

P = ParamSpec("P")
T = TypeVar("T")


class Interrupted(Exception):
    """Ctrl-C while a command was running."""


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ignore_from_now_on() -> None:
    """Ignore signals during exit, once no more programs are started.

    Python drops its handlers at exit, and a signal would then kill the program.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing. Unlike SIG_IGN, child processes do not inherit this."""


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, _ignore)
    raise KeyboardInterrupt


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Restore the handlers of these signals afterwards; an event loop that installs its own resets them."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def only_the_first_counts() -> None:
    """Make the first SIGINT, SIGTERM or SIGHUP raise KeyboardInterrupt, and ignore later ones.

    Call it in the main thread. A program started with one of them ignored, as by nohup or as a background job, keeps
    ignoring it.
    """
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _interrupt_once)


def run(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function as anyio.run does; the first signal cancels it, and it may take time to end.

    After a signal, raises KeyboardInterrupt whatever the function returns or raises: the terminal also interrupts the
    programs that the function talks to, so its errors are only a consequence. Without a signal, raises what the
    function raises.
    """
    # Help and completion need no event loop.
    import asyncio

    import anyio

    ours = [number for number in SIGNALS if signal.getsignal(number) is _interrupt_once]
    interrupted = False

    async def cancellable() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        cancel = task.cancel

        def cancel_once(number: int, frame: FrameType | None) -> None:
            nonlocal interrupted
            interrupted = True
            for each in ours:
                signal.signal(each, _ignore)
            loop.call_soon_threadsafe(cancel)

        for number in ours:
            signal.signal(number, cancel_once)
        try:
            return await function(*args, **kwargs)
        finally:
            for number in ours:
                if signal.getsignal(number) is cancel_once:
                    signal.signal(number, _interrupt_once)

    try:
        result = anyio.run(cancellable)
    except (Exception, asyncio.CancelledError):
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    if interrupted:
        raise KeyboardInterrupt
    return result
