"""Set the limits of this process: descriptors and core files."""

from __future__ import annotations

import errno
import resource
from contextlib import suppress

__all__ = [
    "MOST_DESCRIPTORS",
    "descriptors_for_sessions",
    "descriptors_needed",
    "guard_this_process",
    "sessions_that_fit",
    "too_many_nodes",
    "why_refused",
]

# For everything but sessions: the event loop, listeners, child processes that read and write logs, git.
_OWN = 40
# Each node takes a process with three pipes, and during an upload the open file.
_PER_NODE, _PER_SESSION = 4, 4

MOST_DESCRIPTORS = 65536
"""More than ever needed. The hard limit may be a billion, and some programs that we start loop over all descriptors."""


def guard_this_process() -> None:
    """Raise the soft limit of descriptors, and keep tokens out of core files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    # Some systems allow less than the hard limit; then keep the soft limit.
    with suppress(OSError, ValueError):
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def descriptors_for_sessions(limit: int | None = None) -> int:
    """Return how many descriptors a limit, by default that of this process, leaves for sessions."""
    if limit is None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limit = MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    return max(limit - _OWN, 0)


def descriptors_needed(nodes: int) -> int:
    """Return how many descriptors one session with so many nodes needs."""
    return _PER_SESSION + _PER_NODE * nodes


def sessions_that_fit(nodes: int) -> int:
    """Return how many sessions with so many nodes can be open at the same time."""
    return descriptors_for_sessions() // descriptors_needed(nodes)


def too_many_nodes(nodes: int) -> str | None:
    """Return why this process cannot be connected to so many nodes at once, and what to do; None if it can."""
    if sessions_that_fit(nodes):
        return None
    return (
        f"{nodes} nodes need {_OWN + descriptors_needed(nodes)} file descriptors, and the limit of this process is "
        f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]}; raise it with ulimit -n"
    )


def why_refused(error: OSError) -> str:
    """Return why the system refused to open or start something, and what to do if a limit is reached."""
    what = error.strerror or str(error)
    return f"{what}; raise the limit with ulimit -n" if error.errno in (errno.EMFILE, errno.ENFILE) else what
