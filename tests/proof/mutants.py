"""Faults that the program once had, put back for a soak, which has to find them."""

from __future__ import annotations

import sys
from collections.abc import Callable


def start(mutation: str, program: str) -> None:
    """Run one of our programs with a fault."""
    MUTATIONS[mutation]()
    from cluster_remote.__main__ import command_line, main

    sys.exit((main if program == "git-annex-remote-cluster" else command_line)())


MUTATIONS: dict[str, Callable[[], None]] = {}
