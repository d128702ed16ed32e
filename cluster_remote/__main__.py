"""Start the program: the special remote if git-annex starts it, otherwise the command line."""

from __future__ import annotations

import gc
import sys

from cluster_remote.limits import guard_this_process

__all__ = ["command_line", "main"]

# New objects before a garbage collection. With Python's default of 700, collections during imports, and one at exit
# unless objects are frozen, take a fifth of the time of a short run.
_GARBAGE = 20_000


def main() -> int:
    """Run git-annex-remote-cluster: without arguments, it speaks the external special remote protocol."""
    return command_line() if len(sys.argv) > 1 else special_remote()


def special_remote() -> int:
    """Serve git-annex on standard input and output until it hangs up; return the exit code."""
    # Import only what the first answers need: git-annex starts the program several times per command.
    from cluster_remote.remote.jobs import serve

    if sys.stdin.isatty():
        print(
            "git-annex starts this program by itself: git annex initremote NAME type=external externaltype=cluster …\n"
            "See git-annex-remote-cluster --help for its commands.",
            file=sys.stderr,
        )
        return 2
    guard_this_process()
    gc.set_threshold(_GARBAGE)
    try:
        serve()
    except (BrokenPipeError, KeyboardInterrupt):
        # git-annex has exited, or the user has interrupted it.
        return 1
    finally:
        gc.freeze()
    return 0


def command_line() -> int:
    """Run cluster-remote, the command line."""
    try:
        from cluster_remote.cli.app import run

        guard_this_process()
        gc.set_threshold(_GARBAGE)
        return run()
    except KeyboardInterrupt:  # during the imports
        print("cluster-remote: interrupted", file=sys.stderr)
        return 130
    finally:
        gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
