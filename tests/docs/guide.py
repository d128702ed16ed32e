"""Pages of the documentation as something that can be run.

A block fenced as `console` is a conversation with a shell: a line that begins with `$ ` is a command (a backslash at
its end continues it), what follows up to the next one is what the command prints. All blocks of a page with the same
`title="On …"` talk to the same shell, which stays where it has gone to.

* Where no output is shown, only the exit code counts: 0, or another one for the last command of a block that
  `<!-- the last command fails -->` stands before.
* `…` stands for anything. Where lines end, how wide gaps are and git-annex's progress do not matter, nor when it
  mentions that it merges and records. Indented lines below each other may come in any order: git-annex sorts by UUID.
* A command that ends in `&` stays in the background; what it prints is waited for.
"""

from __future__ import annotations

import itertools
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.support.environment import Environment
from tests.support.processes import end_group

__all__ = ["Command", "Shell", "commands", "matches"]

FAILS = "<!-- the last command fails -->"

# Seconds that one command is given; the machine may be busy with other tests.
_TIMEOUT = 120.0
_END = "END-OF-COMMAND"
_ASIDE = re.compile(r"\((?:recording state in git|merging [^()]* into git-annex)\.\.\.\)")
_FENCE = re.compile(r'^```console(?: title="(?P<title>[^"]*)")?$')


@dataclass(frozen=True)
class Command:
    """A command as a page prints it.

    Attributes:
        line: where it stands in the page, counted from 1.
        shell: the title of its block, empty where it has none.
        text: the command, which may have several lines.
        output: what the page shows below it; empty where that is left out.
        fails: whether its exit code is to be another one than 0.
    """

    line: int
    shell: str
    text: str
    output: str
    fails: bool

    @property
    def stays(self) -> bool:
        """Whether it keeps running in the background."""
        return self.text.endswith("&")


def commands(page: str) -> list[Command]:
    """Return the steps of a page, in order."""
    lines = list(enumerate(page.splitlines(), 1))
    found: list[Command] = []
    fails = False
    rest = iter(lines)
    for _number, line in rest:
        if fence := _FENCE.match(line):
            block = list(_block(rest, fence["title"] or ""))
            assert block, f"a console block without a command before line {_number}"
            if fails:
                last = block[-1]
                block[-1] = Command(last.line, last.shell, last.text, last.output, True)
            found += block
            fails = False
        else:
            assert not line.startswith("```console"), f"line {_number}: {line!r} is not a fence that is understood"
            fails = line == FAILS or (fails and not line)
    return found


def _block(lines: Iterator[tuple[int, str]], shell: str) -> Iterator[Command]:
    start, command, output = 0, "", list[str]()
    for number, line in lines:
        if line == "```":
            break
        if command.endswith("\\"):
            command += "\n" + line
        elif line.startswith("$ "):
            if command:
                yield Command(start, shell, command, "\n".join(output).strip(), False)
            start, command, output = number, line[2:], []
        else:
            assert command, f"line {number}: a console block begins with a command, not with {line!r}"
            output.append(line)
    if command:
        yield Command(start, shell, command, "\n".join(output).strip(), False)


def matches(shown: str, printed: str) -> bool:
    """Return whether a command printed what a page shows."""
    return any(re.fullmatch(_pattern(each), _normal(printed), re.DOTALL) is not None for each in _orders(shown))


def _orders(shown: str) -> Iterator[str]:
    groups = [list(group) for _, group in itertools.groupby(shown.split("\n"), lambda line: line.startswith("  "))]
    choices = [itertools.permutations(group) if group[0].startswith("  ") else [tuple(group)] for group in groups]
    for choice in itertools.product(*choices):
        yield "\n".join(itertools.chain.from_iterable(choice))


def _pattern(shown: str) -> str:
    pattern = ".*".join(re.escape(part) for part in _normal(shown).split("…"))
    # Where the page leaves something out, it leaves out the gaps around it too.
    return re.sub(r"(?:\\ )?\.\*(?:\\ )?", ".*", pattern)


def _normal(text: str) -> str:
    """Return the line a terminal shows after text was drawn over itself."""
    left = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return " ".join(_ASIDE.sub(" ", " ".join(left)).split())


class Shell:
    """A shell that runs the commands of a page one after another."""

    def __init__(self, environment: Environment, home: Path, variables: Mapping[str, str]) -> None:
        """Start it in `home`, its HOME, with `variables` in addition to the environment's."""
        self._background = home / ".background"
        self._process = environment.popen(
            "bash",
            "--norc",
            cwd=home,
            env={**variables, "HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Shell:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What stays in the background is in its process group.
        end_group(self._process.pid)
        self._process.communicate(timeout=_TIMEOUT)

    def run(self, command: Command) -> tuple[int, str]:
        """Run a command to its end, or a background command until it has printed its expected output.

        Gives its exit code and what it printed.

        Raises:
            AssertionError: it took too long.
        """
        redirected = f">{self._background} 2>&1" if command.stays else ""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{{ {command.text}\n}} </dev/null {redirected}\necho {_END} $?\n".encode())
        self._process.stdin.flush()
        code, printed = self._until_the_end(command)
        if command.stays:
            deadline = time.monotonic() + _TIMEOUT
            while not matches(command.output, printed := self._background.read_text()) and time.monotonic() < deadline:
                time.sleep(0.05)
        return code, printed

    def _until_the_end(self, command: Command) -> tuple[int, str]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + _TIMEOUT
        read = b""
        while (end := re.search(_END.encode() + rb" ([0-9]+)\n\Z", read)) is None:
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(descriptor, 65536) if readable else b""
            assert chunk, f"{command.text} did not end: {os.fsdecode(read)}"
            read += chunk
        return int(end[1]), os.fsdecode(read[: end.start()])
