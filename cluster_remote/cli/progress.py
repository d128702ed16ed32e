"""Progress on standard error, one line per task."""

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

__all__ = ["ProgressLines", "progress"]


class ProgressLines:
    """The progress of several tasks, one line each; see `progress`. Does nothing if it is not shown."""

    def __init__(self, shown: Progress | None) -> None:
        self._shown = shown
        self._tasks: dict[str, TaskID] = {}

    @property
    def shown(self) -> bool:
        """Whether the progress is visible."""
        return self._shown is not None

    def begin(self, name: str, total: float | None = None, *, in_bytes: bool = False) -> None:
        """Start a line for `name`; `total` is None if unknown."""
        if self._shown is not None:
            self._tasks[name] = self._shown.add_task(printable(name, 40), total=total, note="", in_bytes=in_bytes)

    def total(self, name: str, total: float) -> None:
        """Set the total, once it is known."""
        if self._shown is not None:
            self._shown.update(self._tasks[name], total=total)

    def advance(self, name: str, by: float = 1) -> None:
        """Add to the progress of `name`."""
        if self._shown is not None:
            self._shown.advance(self._tasks[name], by)

    def gone(self, name: str) -> None:
        """Show that `name` no longer answers."""
        if self._shown is not None:
            self._shown.reset(self._tasks[name], start=False, total=None, note="no answer")

    def note(self, name: str, words: str) -> None:
        """Show a note next to the bar, such as why it stopped."""
        if self._shown is not None:
            self._shown.update(self._tasks[name], note=printable(words, 200))


class _Counting(ProgressColumn):
    """A column for counts: of `unit`, or of bytes in all lines or only in some."""

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
def progress(*, unit: str = "", in_bytes: bool = False, shown: bool = True) -> Iterator[ProgressLines]:
    """Show progress on standard error while the context is open: bar, count, speed and time left.

    Only if standard error is a terminal and `shown`; cleared at the end.
    """
    if not (shown and sys.stderr.isatty()):
        yield ProgressLines(None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Done(unit, in_bytes),
        _Rate(unit, in_bytes),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    # Other output is printed directly, not through the progress display.
    with Progress(
        *columns, console=console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    ) as drawn:
        yield ProgressLines(drawn)
