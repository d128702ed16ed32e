"""Where the program starts: as the special remote when git-annex starts it, as the command line otherwise."""

from __future__ import annotations

import gc
import sys

from cluster_remote.limits import guard_this_process

__all__ = ["command_line", "main"]

# New objects before Python looks for garbage. With its own 700 it looks again and again while modules are imported, and
# once more through all of them at exit unless they are frozen: a fifth of the time that a short run takes.
_GARBAGE = 20_000


def main() -> int:
    """git-annex-remote-cluster: without arguments it speaks the external special remote protocol."""
    return command_line() if len(sys.argv) > 1 else special_remote()


def special_remote() -> int:
    """Serves git-annex on standard input and output until it hangs up. Gives the exit code."""
    # Only what the first answers need: git-annex starts the program several times for a single command.
    from cluster_remote.remote.jobs import serve

    if sys.stdin.isatty():
        print(
            "git-annex starts this program by itself: git annex initremote NAME type=external externaltype=cluster …\n"
            "See git-annex-remote-cluster --help for what you can do with it.",
            file=sys.stderr,
        )
        return 2
    guard_this_process()
    gc.set_threshold(_GARBAGE)
    try:
        serve()
    except (BrokenPipeError, KeyboardInterrupt):
        # git-annex is gone, or the user wants it to be.
        return 1
    finally:
        gc.freeze()
    return 0


def command_line() -> int:
    """cluster-remote: the commands."""
    try:
        from cluster_remote.cli.app import run

        guard_this_process()
        gc.set_threshold(_GARBAGE)
        return run()
    except KeyboardInterrupt:  # while the program was still being read
        print("cluster-remote: interrupted", file=sys.stderr)
        return 130
    finally:
        gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
