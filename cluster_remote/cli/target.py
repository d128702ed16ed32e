"""Resolve NAME or URL on a command line: to one session, or to views of clusters and their nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cluster_remote.access.configuration import NotVerified, check_writing
from cluster_remote.access.local import LocalRepository, looks_like_address
from cluster_remote.access.settings import BadSettings
from cluster_remote.access.view import View
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.repository import Repository
from cluster_remote.annex.verification import pending
from cluster_remote.diagnosis.state import Unusable
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Session
from cluster_remote.p2p.text import as_command

__all__ = [
    "Target",
    "annex_repository",
    "cluster_view",
    "connected",
    "every_cluster",
    "one_cluster",
    "view_named",
    "views_at",
]


def annex_repository() -> Repository:
    """Return the repository that the command was started in. Raises NotARepository, NotInitialised."""
    repository = Repository.here()
    # Fail here, so that a broken repository is not mistaken for a misspelt name.
    _ = repository.uuid
    return repository


# One session


@dataclass(frozen=True)
class Target:
    """An open session with a server, or with the `node` behind it if one was requested."""

    view: View
    node: str
    session: Session

    @property
    def label(self) -> str:
        """What to call it in messages."""
        return f"{self.view.label} ({self.node})" if self.node else self.view.label


async def view_named(
    text: str, timeout: float | None = None, node: str = "", *, writing: bool = False, merge: bool = False
) -> View:
    """Return the remote or address that `text` names, without connecting.

    With `writing`, refuse where git-annex would not write; with `merge`, use the current logs. Raises BadSettings,
    AnnexError.
    """
    address = looks_like_address(text)
    local = await (LocalRepository.anywhere(merge=merge) if address else LocalRepository.here(merge=merge))
    if writing:
        check_writing(local.config)
    return local.address(text, timeout, node) if address else local.remote(text, timeout)


@asynccontextmanager
async def connected(
    text: str, node: str = "", timeout: float | None = None, *, writing: bool = False
) -> AsyncIterator[Target]:
    """Open a session with what `text` names, or with `node` behind it; close it at the end.

    See `view_named`; also raises BadAddress.
    """
    view = await view_named(text, timeout, node, writing=writing)
    session = view.node(node) if node else view.session()
    try:
        yield Target(view, node, session)
    finally:
        await session.aclose()


# Clusters and their nodes


async def cluster_view(name: str, timeout: float | None = None, *, writing: bool = False) -> View:
    """Return a remote of this repository, with the current logs. Like `view_named`, but refuses addresses."""
    if looks_like_address(name):
        raise BadSettings(
            f"{name}: give a remote of this repository, which has a location log to compare; "
            f"{as_command('cluster-remote setup NAME', name)} makes one"
        )
    return await view_named(name, timeout, writing=writing, merge=True)


async def every_cluster(timeout: float | None) -> tuple[list[View], list[Unusable]]:
    """Return all cluster remotes of this repository, except those for single nodes of the others.

    Raises BadSettings if there is none, AnnexError.
    """
    local = await LocalRepository.here(merge=True)
    if not local.remotes():
        raise BadSettings("this repository has no cluster remote; cluster-remote setup NAME URL makes one")
    views: list[View] = []
    unusable: list[Unusable] = []
    for name in local.remotes():
        try:
            views.append(local.remote(name, timeout))
        except (BadSettings, AnnexError) as error:
            # Still show the others.
            unusable.append(await _unusable(local, name, error))
    nodes = {uuid for view in views if view.uuid.is_cluster for uuid in view.uuids}
    return [view for view in views if view.uuid not in nodes], unusable


async def one_cluster(name: str, timeout: float | None) -> tuple[list[View], list[Unusable]]:
    """Return one remote, like `every_cluster`; it is unusable if it is not verified. Raises BadSettings, AnnexError."""
    local = await LocalRepository.here(merge=True)
    try:
        return [local.remote(name, timeout)], []
    except NotVerified as error:
        return [], [await _unusable(local, name, error)]


async def views_at(url: str, timeout: float | None) -> list[View]:
    """Return the clusters, or the repository, at an address, with this repository's logs, if this is one.

    Raises BadSettings, SessionError, AnnexError.
    """
    return await (await LocalRepository.anywhere(merge=True)).answering_at(url, timeout)


async def _unusable(local: LocalRepository, name: str, error: Exception) -> Unusable:
    uuid = UUID(local.config.remote(name, "annex-uuid") or "")
    assert local.repository is not None
    waiting = await pending(local.repository, name) if isinstance(error, NotVerified) else None
    number = None if waiting is None else waiting.number
    return Unusable(name, uuid, local.logs.descriptions.get(uuid, ""), str(error), number)
