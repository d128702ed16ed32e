"""Report a command's failure to the user: a message, JSON if requested, and an exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback

from cluster_remote.annex.errors import AnnexError, NotARepository, NotInitialised
from cluster_remote.cli.exitcodes import FAILED, INTERRUPTED, NOT_USABLE, UNREACHABLE, USAGE
from cluster_remote.cli.interrupts import Interrupted, ignore_from_now_on
from cluster_remote.cli.render import emit_error
from cluster_remote.cli.schema import OUTCOMES
from cluster_remote.p2p.errors import Refused, SessionError, SourceError
from cluster_remote.p2p.text import visible
from cluster_remote.remote.failure import leaf_errors, message_of
from cluster_remote.remote.protocol import one_line
from cluster_remote.remote.retrieval import CannotWrite, NotRetrieved

__all__ = ["report"]


def report(error: BaseException) -> int:
    """Report an error that has not been reported yet; return the exit code."""
    show = getattr(error, "show", None)
    if show is not None and hasattr(error, "exit_code"):
        # typer's own exceptions: wrong usage, and Abort when a prompt is interrupted. They quote arguments, which a
        # shell may have made of the names of files.
        shown, words = io.StringIO(), str(error.format_message())  # type: ignore[attr-defined]
        show(shown)
        if not _told_client(one_line(words)):
            print(visible(shown.getvalue()), file=sys.stderr, end="")
        _add_json(words, USAGE)
        return USAGE
    if isinstance(error, Interrupted | KeyboardInterrupt) or type(error).__name__ == "Abort":
        return _interrupted()
    # Concurrent tasks fail with a group; one of its errors is enough to decide.
    cause = next(leaf_errors(error))
    if isinstance(cause, BrokenPipeError):
        # Standard output was closed at the other end. Keep Python from flushing it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT) and cause.filename is None:
        # Keep Python from flushing again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"cluster-remote: cannot write to standard output: {cause.strerror or cause}", file=sys.stderr)
        return FAILED
    words, expected = message_of(error)
    code = _fail(one_line(words), _exit_code(cause) if expected else FAILED)
    if not expected:
        print("This is a bug in the program. CLUSTER_REMOTE_DEBUG=1 shows where it happened.", file=sys.stderr)
        if os.environ.get("CLUSTER_REMOTE_DEBUG"):
            print(visible("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    return code


def _wants_json() -> bool:
    """Return whether a command that prints JSON was called with --json."""
    given = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    words = [word for word in given if not word.startswith("-")]
    return "--json" in given and any(" ".join(words[:count]) in OUTCOMES for count in (1, 2))


def _fail(words: str, code: int) -> int:
    """Print an error, also as JSON if requested; return the exit code."""
    if not _told_client(words):
        print(f"cluster-remote: {words}", file=sys.stderr)
    _add_json(words, code)
    return code


def _told_client(words: str) -> bool:
    """Return whether the error was for the client of `serve --stdio`, which has been told; see `tell_client`."""
    if "--stdio" not in sys.argv:
        return False
    from cluster_remote.gateway.stdio import tell_client

    return tell_client(words)


def _add_json(words: str, code: int) -> None:
    if _wants_json():
        emit_error(words, code)


def _interrupted() -> int:
    ignore_from_now_on()
    return _fail("interrupted", INTERRUPTED)


def _exit_code(error: BaseException) -> int:
    match error:
        case Refused() | SourceError() | NotRetrieved() | CannotWrite():
            # A server answered, or none was needed to know that this cannot work.
            return FAILED
        case SessionError():
            return UNREACHABLE
        case NotARepository() | NotInitialised():
            return NOT_USABLE
        case AnnexError():
            return FAILED
    return USAGE
