"""cluster-remote: the commands, and how each of their failures reaches the user."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from cluster_remote.cli.exitcodes import FAILED, INTERRUPTED, NOT_USABLE, UNREACHABLE, USAGE
from cluster_remote.cli.interrupts import ignore_from_now_on, only_the_first_counts

__all__ = ["app", "run"]


class Interrupted(Exception):
    """Ctrl-C."""


class Commands(TyperGroup):
    """All commands. Ctrl-C ends one with an exception of ours: typer would end it without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


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

    app.command()(setup.setup)
    app.add_typer(node.app, name="node")
    app.command()(remove.rename)
    app.command()(remove.remove)
    app.command()(ping.ping)
    app.command()(status.status)
    app.command()(check.check)
    app.command()(repair.repair)
    app.command()(doctor.doctor)
    app.command()(demo.demo)
    app.command()(requests.present)
    app.command()(requests.put)
    app.command()(requests.get)
    app.command()(requests.drop)
    app.command()(requests.lock)
    app.command()(trace.trace)
    app.command()(bench.bench)
    app.command()(serve.serve)
    app.add_typer(token.app, name="token")


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


def _interrupted() -> int:
    ignore_from_now_on()
    print("cluster-remote: interrupted", file=sys.stderr)
    return INTERRUPTED


def _report(error: Exception) -> int:
    show = getattr(error, "show", None)
    if show is not None and hasattr(error, "exit_code"):
        # typer's own: wrong usage, and Abort when a question is interrupted.
        show()
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
    print(f"cluster-remote: {one_line(words)}", file=sys.stderr)
    if not expected:
        print("This is a mistake in the program. CLUSTER_REMOTE_DEBUG=1 shows where it happened.", file=sys.stderr)
        if os.environ.get("CLUSTER_REMOTE_DEBUG"):
            import traceback

            print(visible("".join(traceback.format_exception(error))), file=sys.stderr, end="")
        return FAILED
    return _exit_code(cause)


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
