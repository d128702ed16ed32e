"""Set the limits of this process: descriptors and core files."""

from __future__ import annotations

import errno
import resource
from contextlib import suppress

__all__ = ["MOST_DESCRIPTORS", "guard_this_process", "why_refused"]

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


def why_refused(error: OSError) -> str:
    """Return why the system refused to open or start something, and what to do if a limit is reached."""
    what = error.strerror or str(error)
    return f"{what}; raise the limit with ulimit -n" if error.errno in (errno.EMFILE, errno.ENFILE) else what
