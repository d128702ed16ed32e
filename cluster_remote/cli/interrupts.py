"""Ctrl-C: the first one ends a command in good order, and what follows does not cut into that.

asyncio cancels the command at the first one. At the second it raises KeyboardInterrupt wherever its event loop happens
to be, which can lose the very step that would have ended the command: it hangs then. In the middle of cleaning up, the
same leaves directories and processes behind. Users press Ctrl-C twice, and programs that start others often pass it on
while the terminal has given it to everybody already. git-annex answers it with a SIGTERM to everybody in its process
group, to which we belong where it is our child; so SIGTERM counts as the same wish.

All cleaning up has its deadlines: nobody has to press Ctrl-C twice.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ParamSpec, TypeVar

__all__ = ["Interrupted", "ignore_from_now_on", "keeping_handlers", "only_the_first_counts", "run"]

P = ParamSpec("P")
T = TypeVar("T")


class Interrupted(Exception):
    """Ctrl-C, while a command ran."""


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def ignore_from_now_on() -> None:
    """For the last moments of the program, when it starts no others any more: Python forgets its handlers at the end,
    and a signal that comes then would kill it."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _already_ending(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN, which the programs started from now on would inherit."""


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, _already_ending)
    raise KeyboardInterrupt


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """What handles these signals does so again afterwards; an event loop forgets it where it was told of another."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def only_the_first_counts() -> None:
    """From now on the first SIGINT or SIGTERM raises KeyboardInterrupt, and no other one does. For the main thread.

    A program that was started with one of them ignored, as nohup and shells do in the background, goes on ignoring it.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _interrupt_once)


def run(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """anyio.run, where `only_the_first_counts`: the first signal cancels the function, which may take time to end.

    Raises KeyboardInterrupt then, whatever came of the function: a terminal interrupts the programs it talks to too,
    and what it says of their end is only a consequence. Without a signal, raises what the function raises.
    """
    # Neither help nor completion of commands need an event loop.
    import asyncio

    import anyio

    ours = [number for number in _SIGNALS if signal.getsignal(number) is _interrupt_once]
    interrupted = False

    async def cancellable() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        cancel = task.cancel

        def cancel_once(number: int, frame: FrameType | None) -> None:
            nonlocal interrupted
            interrupted = True
            for each in ours:
                signal.signal(each, _already_ending)
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
