"""Progress on standard error: a line for each of the things that are under way at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cluster_remote.cli.render import console, size
from cluster_remote.p2p.text import printable

__all__ = ["Lines", "progress"]


class Lines:
    """The progress of several things at once, a line each; see `progress`. Does nothing where nobody looks."""

    def __init__(self, shown: Progress | None) -> None:
        self._shown = shown
        self._tasks: dict[str, TaskID] = {}

    @property
    def shown(self) -> bool:
        """Whether anybody sees it."""
        return self._shown is not None

    def begin(self, name: str, total: float | None = None, *, in_bytes: bool = False) -> None:
        """A line for `name`; `total` is where it will end, None where that is not known."""
        if self._shown is not None:
            self._tasks[name] = self._shown.add_task(printable(name, 40), total=total, note="", in_bytes=in_bytes)

    def total(self, name: str, total: float) -> None:
        """Where it will end is known now."""
        if self._shown is not None:
            self._shown.update(self._tasks[name], total=total)

    def advance(self, name: str, by: float = 1) -> None:
        """So much more has been done."""
        if self._shown is not None:
            self._shown.advance(self._tasks[name], by)

    def gone(self, name: str) -> None:
        """Nothing more comes from it."""
        if self._shown is not None:
            self._shown.reset(self._tasks[name], start=False, total=None, note="no answer")

    def note(self, name: str, words: str) -> None:
        """What is to be said of it beside the bar, such as why it has stopped."""
        if self._shown is not None:
            self._shown.update(self._tasks[name], note=printable(words, 200))


class _Counting(ProgressColumn):
    """A column of what is counted: things that have a `unit`, or bytes, in all lines or only in some."""

    def __init__(self, unit: str, in_bytes: bool) -> None:
        super().__init__()
        self._unit = unit
        self._in_bytes = in_bytes

    def counts_bytes(self, task: Task) -> bool:
        return self._in_bytes or bool(task.fields.get("in_bytes"))


class _Rate(_Counting):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        return Text(f"{size(round(speed))}/s" if self.counts_bytes(task) else f"{speed:,.0f} {self._unit}/s")


class _Done(_Counting):
    def render(self, task: Task) -> Text:
        return (DownloadColumn() if self.counts_bytes(task) else MofNCompleteColumn()).render(task)


@contextmanager
def progress(*, unit: str = "", in_bytes: bool = False, shown: bool = True) -> Iterator[Lines]:
    """Progress on standard error while the context is open: a bar, how many, how fast, how long still.

    Only where standard error is a terminal, and `shown`; it is gone from there afterwards.
    """
    if not (shown and sys.stderr.isatty()):
        yield Lines(None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Done(unit, in_bytes),
        _Rate(unit, in_bytes),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    # What is printed meanwhile goes where it belongs, not through the progress.
    with Progress(
        *columns, console=console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    ) as drawn:
        yield Lines(drawn)
