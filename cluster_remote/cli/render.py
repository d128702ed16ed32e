"""Show values: as JSON, or as text and tables, in colour only on a terminal.

A command creates one value (a frozen dataclass) and passes it to `emit`; people and scripts get the same value.
"""

from __future__ import annotations

import enum
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import PurePath
from typing import IO, Any, ClassVar, TypeAlias, TypeVar

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cluster_remote.diagnosis.problem import Problem
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.text import printable, visible

__all__ = [
    "JSON",
    "JsonStream",
    "console",
    "duration",
    "emit",
    "emit_error",
    "say",
    "show_problems",
    "size",
    "table",
    "to_json",
]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

T = TypeVar("T")

# Columns without a terminal: nothing is folded or cut off in a file.
_UNLIMITED = 10_000


class _Console(Console):
    def render(self, *arguments: Any, **options: Any) -> Iterator[Segment]:
        # All output passes through here: escape what has not been made printable yet.
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        # rich would exit here; the caller decides what a broken pipe means.
        raise BrokenPipeError

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Break lines only between words: a path or a key that is longer than a line stays in one piece."""
        if not soft_wrap:
            objects = tuple(_wrapped(each, self.width) if isinstance(each, str | Text) else each for each in objects)
        super().print(*objects, soft_wrap=True, **options)


def _wrapped(words: str | Text, width: int) -> Text:
    lines: list[Text] = []
    for line in (Text(words) if isinstance(words, str) else words).split("\n", allow_blank=True):
        starts, column = [], 0
        for word in re.finditer(r"\s*(\S+)", line.plain):
            if column and column + cell_len(word[0]) > width:
                starts.append(word.start(1))
                column = cell_len(word[1])
            else:
                column += cell_len(word[0])
        *full, last = line.divide(starts)
        for each in full:
            each.rstrip()
        lines += [*full, last]
    return Text("\n").join(lines)


def console(*, stderr: bool = False) -> Console:
    """Return a console for tables and words: plain text without a terminal, or with NO_COLOR.

    Text is printed literally: no rich markup, no automatic highlighting.
    """
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty()
    plain = not terminal or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return _Console(
        file=stream,
        stderr=stderr,
        color_system=None if plain else "auto",
        force_terminal=terminal,
        width=None if terminal else _UNLIMITED,
        markup=False,
        highlight=False,
        emoji=False,
    )


def say(text: str, *, err: bool = False, **style: Any) -> None:
    """Print text that may contain parts of a log or of a peer's message. `style` is that of typer.secho."""
    typer.secho(visible(text), err=err, **style)


def emit(value: T, as_json: bool, render: Callable[[T, Console], None]) -> None:
    """Show a command's outcome, a dataclass: as one line of JSON, or as `render` draws it."""
    if as_json:
        _write(sys.stdout, json.dumps(to_json(value)) + "\n")
    else:
        render(value, console())


def to_json(value: object) -> JSON:
    """Convert a value to JSON: dataclasses by field name, UUIDs and keys as text, sets sorted.

    Non-UTF-8 bytes become lone surrogates (`\\udcff`) in text, so nothing is lost. Raises TypeError for any other type.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case UUID() | Key() | AssociatedFile() | PurePath():
            return str(value)
        case enum.Enum():
            return to_json(value.value)
        case Mapping():
            return {str(name): to_json(each) for name, each in value.items()}
        case Set():
            return sorted((to_json(each) for each in value), key=str)
        case list() | tuple():
            return [to_json(each) for each in value]
        case _ if is_dataclass(value) and not isinstance(value, type):
            return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _write(stream: IO[str], text: str) -> None:
    stream.write(text)
    stream.flush()


def emit_error(words: str, code: int) -> None:
    """Print why a command failed, as JSON: at the end of a half-written object, or by itself."""
    stream = JsonStream.unfinished or JsonStream()
    stream.field("error", words)
    stream.field("exit_code", code)
    stream.close()


class JsonStream:
    """Write one JSON object incrementally, for outcomes that do not fit into memory.

    Fields are written in the order given; one of them may be a list that grows line by line.
    """

    unfinished: ClassVar[JsonStream | None] = None
    """The stream that has begun and is not closed yet."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stdout
        self._separator = "{"

    def _write(self, text: str) -> None:
        JsonStream.unfinished = self
        self._stream.write(text)

    def field(self, name: str, value: object) -> None:
        """Write a field with its value."""
        self._write(f"{self._separator}{json.dumps(name)}: {json.dumps(to_json(value))}")
        self._separator = ", "

    @contextmanager
    def items(self, name: str) -> Iterator[Callable[[object], None]]:
        """Write a list field; yield the function that adds an item on a line of its own.

        The field is written with its first item. It is closed even if the block fails, so that the error can follow.
        """
        start = f"{self._separator}{json.dumps(name)}: ["
        separator = start + "\n"

        def add(item: object) -> None:
            nonlocal separator
            self._write(separator + json.dumps(to_json(item)))
            separator = ",\n"

        try:
            yield add
        except BaseException:
            if separator == ",\n":
                self._write("]")
                self._separator = ",\n"
            raise
        self._write("]" if separator == ",\n" else start + "]")
        self._separator = ",\n"

    def close(self) -> None:
        """Close the object, which is not valid JSON before that."""
        JsonStream.unfinished = None
        _write(self._stream, "}\n")


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], *, right: Iterable[str] = ()) -> FittingTable:
    """Make a table for `console().print`. Cells may be rich Text; anything else becomes one line, made safe to print.

    `right` names the columns of numbers. On a terminal too narrow for one line per row, each row becomes a paragraph:
    no column is lost and no word is broken.
    """
    return FittingTable(tuple(columns), [[_cell(cell) for cell in row] for row in rows], frozenset(right))


def _cell(value: object) -> Text:
    return value if isinstance(value, Text) else Text(printable(str(value), _UNLIMITED))


@dataclass(frozen=True)
class FittingTable:
    """A table that turns into paragraphs on a terminal too narrow for it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Text]]
    right: Set[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        drawn = self._table()
        if Measurement.get(console, options.update(width=_UNLIMITED), drawn).maximum <= console.width:
            yield drawn
        else:
            yield from self._paragraphs(console.width)

    def _table(self) -> Table:
        made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
        for column in self.columns:
            made.add_column(column, justify="right" if column in self.right else "left", no_wrap=True)
        for row in self.rows:
            made.add_row(*row)
        return made

    def _paragraphs(self, width: int) -> Iterator[Text]:
        """Yield each row: its first cell on one line, the others below, as many per line as fit."""
        for first, *cells in self.rows:
            yield first.copy()
            line = Text()
            for name, cell in zip(self.columns[1:], cells, strict=True):
                if not cell:
                    continue
                said = Text.assemble((f"{name} ", "dim"), cell)
                if line and len(line) + len(said) + 2 > width:
                    yield line
                    line = Text()
                line += Text("  ") + said
            yield line


def show_problems(problems: Sequence[Problem], console: Console) -> None:
    """Print problems, each with its remedy and commands below it."""
    for number, problem in enumerate(problems):
        words = Text.assemble(("✗ ", "bold red"), printable(problem.words, 2000))
        console.print(words)
        following = problems[number + 1] if number + 1 < len(problems) else None
        if following and (following.remedy, following.commands) == (problem.remedy, problem.commands):
            # The next problem has the same remedy.
            continue
        for line in Text(printable(problem.remedy, 2000)).wrap(console, console.width - 2):
            console.print(f"  {line.plain.rstrip()}")
        for command in problem.commands:
            # On one line, so that it can be copied.
            console.print(Text(f"    {printable(command, 2000)}", style="bold"), soft_wrap=True)


_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def size(number: int | None) -> str:
    """Format bytes in powers of 1000, as disks are sold; `?` if unknown."""
    if number is None:
        return "?"
    value = float(number)
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            return f"{number} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def duration(seconds: float | None) -> str:
    """Format a time in seconds for people; `?` if unknown."""
    if seconds is None:
        return "?"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.0995 else f"{seconds * 1000:.0f} ms"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole // 60 % 60:02} h"
