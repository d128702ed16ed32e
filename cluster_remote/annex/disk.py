"""Call functions that may wait for a disk: one that hangs must block neither the event loop nor the program's exit.

Where there is no event loop, use `waiting.ask_disk_and_wait`.
"""

from __future__ import annotations

import _thread
import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

__all__ = ["ask_disk", "free_bytes"]

T = TypeVar("T")


async def ask_disk(function: Callable[..., T], *arguments: object) -> T:
    """Run a function that may wait for a disk, and return its result; cancel this to stop waiting.

    It runs in a daemon thread, which does not keep the program from exiting. Raises what the function raises.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value)  # type: ignore[arg-type]

    def ask() -> None:
        value, failure = None, None
        try:
            value = function(*arguments)
        except Exception as error:  # noqa: BLE001 -- raised to the caller
            failure = error
        # The loop may be closed by the time the disk answers.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, value, failure)

    # Unlike threading.Thread.start, this does not wait for the thread to start.
    _thread.start_new_thread(ask, ())
    return await answer


def free_bytes(disk: os.statvfs_result) -> int | None:
    """Return the free bytes of a disk; None if its file system does not say."""
    return disk.f_bavail * disk.f_frsize if disk.f_blocks else None
