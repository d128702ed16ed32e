"""Resolve NAME or URL on a command line, for commands that talk to one server or node."""

from __future__ import annotations

from dataclasses import dataclass

from cluster_remote.access.configuration import check_writing
from cluster_remote.access.place import Place, looks_like_address
from cluster_remote.access.settings import Settings
from cluster_remote.access.view import View
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.session import Session

__all__ = ["Target", "annex_repository", "resolve", "view_named"]


@dataclass(frozen=True)
class Target:
    """An open session with a server or node.

    `node` is the requested node behind it, if any. `settings` is None for a bare address, `repository` is None outside
    a git-annex repository.
    """

    label: str
    node: str
    session: Session
    settings: Settings | None
    repository: Repository | None
    logs: BranchLogs


def annex_repository() -> Repository:
    """Return the repository that the command was started in. Raises NotARepository, NotInitialised."""
    repository = Repository.here()
    # Fail here, so that a broken repository is not mistaken for a misspelt name.
    _ = repository.uuid
    return repository


async def view_named(text: str, timeout: float | None = None, node: str = "", *, writing: bool = False) -> View:
    """Return the remote or address that `text` names, without connecting.

    `writing` refuses where git-annex would not write. Raises BadSettings, AnnexError.
    """
    address = looks_like_address(text)
    place = await (Place.anywhere() if address else Place.here())
    if writing:
        check_writing(place.config)
    return place.address(text, timeout, node) if address else place.remote(text, timeout)


async def resolve(text: str, *, timeout: float | None = None, node: str = "", writing: bool = False) -> Target:
    """Open a session with what `text` names, or with `node` behind it. See `view_named`; also raises BadAddress."""
    view = await view_named(text, timeout, node, writing=writing)
    session = view.node(node) if node else view.session()
    label = f"{text} ({node})" if node else text
    return Target(label, node, session, view.settings, view.repository, view.logs)
