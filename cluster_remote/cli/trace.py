"""cluster-remote trace: show what a git-annex command and the cluster say to each other."""

from __future__ import annotations

import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated

import anyio
import typer

from cluster_remote.access.settings import TOKEN, BadSettings
from cluster_remote.access.tokens import given_token
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.repository import Repository
from cluster_remote.cli.exitcodes import OK
from cluster_remote.cli.foreground import run_in_foreground
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.options import Json
from cluster_remote.cli.render import JsonStream
from cluster_remote.diagnosis.conversation import (
    BadTrace,
    Ending,
    Heading,
    TracedMessage,
    TraceFormatter,
    is_heading,
    parse_message,
    read_ending,
    read_heading,
    write_ending,
    write_heading,
    write_message,
)
from cluster_remote.diagnosis.drawing import MOST_MESSAGES, Diagram, as_svg, as_text, lay_out
from cluster_remote.p2p.text import printable, visible
from cluster_remote.transport.tracing import VARIABLE

__all__ = ["trace"]

# A token in an assignment for a shell or env(1), quoted or not; at the end of a link for git annex p2p; as the password
# in a url; or in the form that our gateway creates.
_TOKEN = re.compile(
    rf"""({TOKEN}=(?:\\?["'])?)[^\s"']+|(p2p-annex::\S*:)[^\s:"']+|(://[^\s/@:]*:)[^\s/]+(?=@)|\b[a-z2-7]{{52}}\b"""
)
# Seconds between checks for new messages.
_POLL_INTERVAL = 0.05
# Maximum characters in a line of a trace: the longest message, and its metadata.
_LINE_LIMIT = 1024 * 1024


def trace(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="-- COMMAND… | FILE", help="Command to run and trace, or a saved trace.", show_default=False
        ),
    ],
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Save the conversation in FILE.", show_default=False)
    ] = None,
    diagram: Annotated[bool, typer.Option("--diagram", help="Draw it with arrows at the end.")] = False,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw it in FILE as SVG.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Run COMMAND and show the P2P protocol messages of its cluster remotes, or show a saved trace.

    Each line has the seconds since the start, the session, the direction (→ to the server, ← from it), the message, and
    the number of content bytes after it. Tokens are masked. The trace goes to standard error, to keep COMMAND's output
    separate; with --json it is the other way round. A saved trace contains names of files and hosts; only its owner can
    read it, except where files have no modes (FAT).

    Exit codes: that of COMMAND (127: not found, 126: cannot be run); 0 for a saved trace; 2 wrong usage, or FILE is not
    a trace.

    Example: cluster-remote trace -- git annex copy --to mycluster photo.jpg

    Example: cluster-remote trace --save bug.trace -- git annex drop --from mycluster photo.jpg
    """
    file = _saved_trace(command)
    with ExitStack() as stack:
        keep = None if save is None else stack.enter_context(_writable(save, "--save", private=True))
        picture = None if svg is None else stack.enter_context(_writable(svg, "--svg"))
        shown = sys.stdout if file is not None or as_json else sys.stderr
        report = _Report(shown, as_json, keep, drawn=diagram or picture is not None)
        if file is not None:
            code = _replay(stack.enter_context(file), report)
        else:
            code = run(_traced, command, report, as_json)
        if diagram and not as_json:
            for line in as_text(report.diagram(), plain=not _speaks_unicode(shown)):
                print(visible(line), file=shown)
        if picture is not None:
            picture.writelines(line + "\n" for line in as_svg(report.diagram()))
        if not report.messages:
            print(
                "cluster-remote: no messages: the command used no cluster remote, or could not connect",
                file=sys.stderr,
            )
    raise typer.Exit(code)


class _Report:
    """Shows a conversation as it happens, saves it, and remembers it for a drawing."""

    def __init__(self, shown: IO[str], as_json: bool, keep: IO[str] | None, drawn: bool) -> None:
        self.messages = 0
        self._shown = shown
        self._json = JsonStream(shown) if as_json else None
        self._keep = keep
        self._most = MOST_MESSAGES if drawn else 0
        self._first: list[TracedMessage] = []
        self._heading = Heading((), 0.0)
        self._stack = ExitStack()

    def begin(self, heading: Heading) -> None:
        self._heading = heading
        self._formatter = TraceFormatter(heading, plain=not _speaks_unicode(self._shown))
        if self._keep is not None:
            self._keep.write(write_heading(heading))
        if self._json is not None:
            self._json.field("command", heading.command)
            self._json.field("started", heading.started)
            self._json.field("names", heading.names)
            self._add = self._stack.enter_context(self._json.items("messages"))

    def message(self, said: TracedMessage) -> None:
        self.messages += 1
        if len(self._first) < self._most:
            self._first.append(said)
        if self._keep is not None:
            self._keep.write(write_message(said))
        if self._json is not None:
            self._add(said)
        else:
            for line in self._formatter.lines(said):
                print(visible(line), file=self._shown)

    def end(self, ending: Ending) -> None:
        if self._keep is not None:
            self._keep.write(write_ending(ending))
        if self._json is not None:
            self._stack.close()
            self._json.field("exit_code", ending.exit_code)
            self._json.close()
        self._shown.flush()

    def diagram(self) -> Diagram:
        return lay_out(self._heading, self._first, self.messages - len(self._first))


def _speaks_unicode(stream: IO[str]) -> bool:
    return str(getattr(stream, "encoding", "")).lower().startswith("utf")


@contextmanager
def _writable(path: Path, option: str, *, private: bool = False) -> Iterator[IO[str]]:
    """Open a file for writing, before doing anything whose result might not be saved. Raises BadSettings.

    A private one can be read by its owner only, whatever the umask; where files have no modes, a warning is shown.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600 if private else 0o666)
        file = open(descriptor, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 -- closed below
        status = os.fstat(descriptor)
        # A device, such as /dev/stdout, has neither a length nor a mode of ours.
        if stat.S_ISREG(status.st_mode):
            if private and status.st_uid != os.geteuid():
                file.close()
                raise BadSettings(f"{option} {path}: this file belongs to user {status.st_uid}, who could read it")
            if private:
                with suppress(OSError):
                    os.fchmod(descriptor, 0o600)
                if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
                    print(
                        f"cluster-remote: {option} {printable(str(path))}: other users may be able to read it, because "
                        "its file system does not keep modes",
                        file=sys.stderr,
                    )
            os.ftruncate(descriptor, 0)
    except OSError as error:
        raise BadSettings(f"{option} {path}: {error.strerror}") from None
    with file:
        yield file


# A saved trace


def _saved_trace(words: list[str]) -> IO[str] | None:
    """Return the file if the only word names a saved trace; otherwise it is a command."""
    if len(words) != 1 or not Path(words[0]).is_file():
        return None
    try:
        file = open(words[0], encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 -- the caller closes it
        first = file.readline(_LINE_LIMIT)
    except OSError as error:
        raise BadSettings(f"{words[0]}: {error.strerror}") from None
    if is_heading(first):
        file.seek(0)
        return file
    file.close()
    if os.access(words[0], os.X_OK):
        return None
    raise BadSettings(f"{words[0]} is neither a saved trace nor a program")


def _replay(file: IO[str], report: _Report) -> int:
    """Show a saved trace. Raises BadSettings if it is damaged, after showing what comes before the damage."""
    ending = Ending()
    try:
        report.begin(read_heading(file.readline(_LINE_LIMIT)))
        while line := file.readline(_LINE_LIMIT):
            end = read_ending(line)
            if end is not None:
                ending = end
                break
            report.message(parse_message(line))
    except BadTrace as error:
        raise BadSettings(f"{file.name}: {error}") from None
    report.end(ending)
    return OK


# A command


async def _traced(command: list[str], report: _Report, as_json: bool) -> int:
    """Run the command and report its messages; return its exit code."""
    with tempfile.TemporaryDirectory(prefix="cluster-remote-trace-") as directory:
        path = Path(directory) / "conversation"
        path.touch(mode=0o600)
        report.begin(Heading(_without_token(command), time.time(), await _names()))
        codes: list[int] = []
        with path.open("rb") as file:
            async with anyio.create_task_group() as tasks:

                async def start() -> None:
                    environment = {**os.environ, VARIABLE: str(path)}
                    codes.append(await run_in_foreground(command, env=environment, stdout_to_stderr=as_json))

                tasks.start_soon(start)
                rest = b""
                while not codes:
                    await anyio.sleep(_POLL_INTERVAL)
                    rest = _report_new(file, rest, report)
            _report_new(file, rest, report)
    report.end(Ending(codes[0]))
    return codes[0]


def _report_new(file: IO[bytes], rest: bytes, report: _Report) -> bytes:
    """Report the complete lines added to the file; return the incomplete rest."""
    while chunk := file.read(_LINE_LIMIT):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            try:
                said = parse_message(line.decode("ascii", "backslashreplace"))
            except BadTrace as error:
                # Usually the disk is full. Tracing must not disturb the traced command.
                print(f"cluster-remote: cannot read a message: {printable(str(error))}", file=sys.stderr)
            else:
                report.message(said)
    return rest


def _without_token(command: list[str]) -> tuple[str, ...]:
    """Mask tokens in the command: the one in the environment, and any word that looks like one or is passed as one."""
    token = given_token()
    words = (word.replace(token, "[token]") if token else word for word in command)
    return tuple(_TOKEN.sub(lambda found: f"{found[1] or found[2] or found[3] or ''}[token]", word) for word in words)


async def _names() -> dict[str, str]:
    """Return this repository's descriptions of others; none outside a repository, where tracing works too."""
    try:
        logs = await BranchLogs.read(await Repository.find(), ("uuid.log",))
    except AnnexError:
        return {}
    return {uuid.text: name for uuid, name in logs.descriptions.items()}
