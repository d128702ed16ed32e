"""cluster-remote: the commands, and how each of their failures reaches the user."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from cluster_remote.cli.exitcodes import FAILED, INTERRUPTED, NOT_USABLE, UNREACHABLE, USAGE
from cluster_remote.cli.interrupts import ignore_from_now_on, only_the_first_counts

__all__ = ["app", "run"]


class Interrupted(Exception):
    """Ctrl-C."""


class Commands(TyperGroup):
    """All commands, in groups. Ctrl-C ends one with an exception of ours: typer would end it without a word."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for command in self.commands.values():
            _use_words(command)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        # rich_help_panel is for typer's own layout, which we do not use.
        groups: dict[str, list[tuple[str, str]]] = {}
        room = formatter.width - 6 - max(map(len, self.commands))
        for name, command in self.commands.items():
            groups.setdefault(getattr(command, "rich_help_panel", "") or "Others", []).append(
                (name, command.get_short_help_str(room))
            )
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


_WORDS = {"timeout": "SECONDS"}


def _use_words(command: Any) -> None:
    """Make the help of a command call values by words, not by the types of Python."""
    for each in getattr(command, "commands", {}).values():
        _use_words(each)
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            # Newer versions of typer show the type even beside a metavar.
            parameter.display_type_rich = lambda ctx: None
        elif parameter.metavar is None:
            parameter.metavar = _WORDS.get(parameter.name, parameter.name.upper())


app = typer.Typer(
    name="cluster-remote",
    cls=Commands,
    help="A git-annex cluster as one remote: set it up, look at it, try it out.\n\n"
    "Exit codes: 0 all is well, 1 what was asked for did not succeed, 2 wrong usage, 3 a server cannot be reached, "
    "4 not in a repository that can do this, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from cluster_remote import __version__

        typer.echo(f"git-annex-remote-cluster {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """A git-annex cluster as one remote: set it up, look at it, try it out."""


def _register() -> None:
    from cluster_remote.cli import (
        bench,
        check,
        demo,
        doctor,
        node,
        ping,
        remove,
        repair,
        requests,
        serve,
        setup,
        status,
        token,
        trace,
    )

    groups: dict[str, list[Callable[..., None] | typer.Typer]] = {
        "Set up": [setup.setup, node.app, remove.rename, remove.remove],
        "Look and mend": [status.status, check.check, repair.repair, doctor.doctor, ping.ping],
        "Serve others": [serve.serve, token.app],
        "Ask one server or node": [requests.present, requests.put, requests.get, requests.drop, requests.lock],
        "Try out": [demo.demo, trace.trace, bench.bench],
    }
    for title, commands in groups.items():
        for each in commands:
            if isinstance(each, typer.Typer):
                app.add_typer(each, rich_help_panel=title)
            else:
                app.command(rich_help_panel=title)(each)


_register()


def run() -> int:
    """Runs the command line of this process; gives the exit code. No traceback reaches a user."""
    only_the_first_counts()
    try:
        outcome = app(standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:  # noqa: BLE001 -- every failure ends here, as words
        return _report(error)
    return outcome if isinstance(outcome, int) else 0


def _wants_json() -> bool:
    """Return whether the command line has --json, the switch, of a command that prints JSON."""
    from cluster_remote.cli.schema import OUTCOMES

    given = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    words = [word for word in given if not word.startswith("-")]
    return "--json" in given and any(" ".join(words[:count]) in OUTCOMES for count in (1, 2))


def _fail(words: str, code: int) -> int:
    """Print an error, in JSON too where that was asked for; return the exit code."""
    print(f"cluster-remote: {words}", file=sys.stderr)
    _add_json(words, code)
    return code


def _add_json(words: str, code: int) -> None:
    if _wants_json():
        from cluster_remote.cli.render import emit_error

        emit_error(words, code)


def _interrupted() -> int:
    ignore_from_now_on()
    return _fail("interrupted", INTERRUPTED)


def _report(error: Exception) -> int:
    show = getattr(error, "show", None)
    if show is not None and hasattr(error, "exit_code"):
        # typer's own: wrong usage, and Abort when a question is interrupted.
        show()
        _add_json(str(error.format_message()), USAGE)  # type: ignore[attr-defined]
        return USAGE
    if isinstance(error, Interrupted) or type(error).__name__ == "Abort":
        return _interrupted()
    from cluster_remote.p2p.text import visible
    from cluster_remote.remote.failure import causes, in_words
    from cluster_remote.remote.protocol import one_line

    # What went wrong in tasks that ran side by side comes as a group; one of them is enough to decide.
    cause = next(causes(error))
    if isinstance(cause, BrokenPipeError):
        # Whoever read our output has seen enough. Nothing more can be written, not even at the end of the program.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT) and cause.filename is None:
        # At the end of the program nothing more is to be tried.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"cluster-remote: cannot write to standard output: {cause.strerror or cause}", file=sys.stderr)
        return FAILED
    words, expected = in_words(error)
    code = _fail(one_line(words), _exit_code(cause) if expected else FAILED)
    if not expected:
        print("This is a mistake in the program. CLUSTER_REMOTE_DEBUG=1 shows where it happened.", file=sys.stderr)
        if os.environ.get("CLUSTER_REMOTE_DEBUG"):
            import traceback

            print(visible("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    return code


def _exit_code(error: BaseException) -> int:
    from cluster_remote.annex.errors import AnnexError, NotARepository, NotInitialised
    from cluster_remote.p2p.errors import Refused, SessionError, SourceError
    from cluster_remote.remote.retrieval import CannotWrite, NotRetrieved

    match error:
        case Refused() | SourceError() | NotRetrieved() | CannotWrite():
            # There was an answer, or nobody was needed to know that it cannot be done.
            return FAILED
        case SessionError():
            return UNREACHABLE
        case NotARepository() | NotInitialised():
            return NOT_USABLE
        case AnnexError():
            return FAILED
    return USAGE
