"""What a command line means by NAME or URL, for commands that talk to one server or node."""

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
    """Somebody to talk to.

    `node` is the node behind it that was asked for, if any. `settings` is None for a bare address, `repository` outside
    of one of git-annex.
    """

    label: str
    node: str
    session: Session
    settings: Settings | None
    repository: Repository | None
    logs: BranchLogs


def annex_repository() -> Repository:
    """The repository that the command was started in. Raises NotARepository, NotInitialised."""
    repository = Repository.here()
    # Asked for before anything else, so that what is wrong is not taken for a misspelt name.
    _ = repository.uuid
    return repository


async def view_named(text: str, timeout: float | None = None, node: str = "", *, writing: bool = False) -> View:
    """The remote or address that `text` names. Nothing is connected yet.

    `writing` refuses where git-annex would not write. Raises BadSettings, AnnexError.
    """
    address = looks_like_address(text)
    place = await (Place.anywhere() if address else Place.here())
    if writing:
        check_writing(place.config)
    return place.address(text, timeout, node) if address else place.remote(text, timeout)


async def resolve(text: str, *, timeout: float | None = None, node: str = "", writing: bool = False) -> Target:
    """A session with what `text` names, or with the one `node` behind it. See `view_named`; also raises BadAddress."""
    view = await view_named(text, timeout, node, writing=writing)
    session = view.node(node) if node else view.session()
    label = f"{text} ({node})" if node else text
    return Target(label, node, session, view.settings, view.repository, view.logs)
