"""Shell completion of remotes and nodes. Never raises: a shell has nowhere to show an error.

Names come from the git-annex branch, which others write to, and end up on a command line.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable

import anyio

from cluster_remote.access.configuration import our_remotes
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.repository import Repository

__all__ = ["behind_gateway", "candidates", "clusters", "nodes", "remotes"]


def remotes(incomplete: str) -> list[str]:
    """Return the remotes of this repository that use this program."""
    try:
        names = our_remotes(Repository.here().config())
    except AnnexError:
        return []
    return _offered(names, incomplete)


def nodes(incomplete: str) -> list[str]:
    """Return the names of repositories behind the gateways known here, and of remotes here that may be nodes."""
    try:
        repository = Repository.here()
        config = repository.config()
        logs = anyio.run(BranchLogs.read, repository, ("cluster.log", "proxy.log"))
    except AnnexError:
        return []
    members = {node.text for each in logs.clusters.members.values() for node in each}
    found = [name for name in config.remotes() if config.remote(name, "annex-uuid") in members]
    found += [name for names in logs.proxied.values() for name, uuid in names.items() if uuid.text in members]
    return _offered(found, incomplete)


def behind_gateway(incomplete: str) -> list[str]:
    """Return this gateway's names for the repositories and clusters behind it."""
    try:
        repository = Repository.here()
        own = repository.uuid
        logs = anyio.run(BranchLogs.read, repository, ("proxy.log",))
    except AnnexError:
        return []
    return _offered(("here", *sorted(logs.proxied.get(own, {}))), incomplete)


def clusters(incomplete: str) -> list[str]:
    """Return the clusters that this repository is a gateway of."""
    try:
        found = Repository.here().config().clusters()
    except AnnexError:
        return []
    return _offered(found, incomplete)


def candidates(incomplete: str) -> list[str]:
    """Return the remotes of this repository that could become nodes: known to git-annex, and not ours."""
    try:
        config = Repository.here().config()
    except AnnexError:
        return []
    ours = our_remotes(config)
    return _offered(
        (name for name in config.remotes() if name not in ours and config.remote(name, "annex-uuid")), incomplete
    )


def _offered(names: Iterable[str], incomplete: str) -> list[str]:
    """Return the names with this prefix, each quoted as one shell word that is not an option.

    bash inserts completions verbatim, so they are quoted for it. Other shells quote them, but some only after
    evaluating the text; these only get names that need no quotes.
    """
    bash = "_bash" in os.environ.get("_CLUSTER_REMOTE_COMPLETE", "")
    fitting = [
        name
        for name in dict.fromkeys(names)
        if name.startswith(incomplete) and name.isprintable() and not name.startswith("-")
    ]
    return [shlex.quote(name) for name in fitting if bash or shlex.quote(name) == name]
