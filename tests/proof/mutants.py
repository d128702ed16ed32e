"""Faults the program once had, put back for a soak that must find them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

NODES = 3


def start(mutation: str, program: str) -> None:
    """Run one of our programs with a fault."""
    MUTATIONS[mutation]()
    from cluster_remote.__main__ import command_line, main

    sys.exit((main if program == "git-annex-remote-cluster" else command_line)())


def _present_only_where_all_have_it() -> None:
    """CHECKPRESENT answers no if any node lacks the content, so that git-annex fills it."""

    from cluster_remote.remote import requests

    truthful = requests._check_present

    async def lying(context: Any, session: Any, key: Any) -> bool:
        present = await truthful(context, session, key)
        return present and (not context.counts_nodes or len(await context.nodes_with(key)) == NODES)

    vars(requests)["_check_present"] = lying


def _remove_everywhere() -> None:
    """REMOVE removes the content from every node, whatever its cause."""
    from cluster_remote.remote import removal, storing
    from cluster_remote.remote.causes import Causes

    truthful = removal.undo

    async def everywhere(context: Any, session: Any, key: Any, added: Any) -> Any:
        return await truthful(context, session, key, context.living_nodes)

    removal.undo = everywhere
    vars(storing)["undo"] = everywhere
    Causes.take = lambda self, key: None  # type: ignore[method-assign]


MUTATIONS: dict[str, Callable[[], None]] = {
    "present-only-where-all-have-it": _present_only_where_all_have_it,
    "remove-everywhere": _remove_everywhere,
}
