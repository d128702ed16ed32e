"""Resolve NAME or URL on a command line, for commands that look at each node."""

from __future__ import annotations

from cluster_remote.access.configuration import NotVerified, check_writing
from cluster_remote.access.place import Place, looks_like_address
from cluster_remote.access.settings import BadSettings
from cluster_remote.access.view import View
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.verification import pending
from cluster_remote.diagnosis.nodes import Unusable
from cluster_remote.p2p.key import UUID

__all__ = ["every_view", "one_view", "view_of", "views_at"]


async def every_view(timeout: float | None) -> tuple[list[View], list[Unusable]]:
    """Return all cluster remotes of this repository, except those that lead to a single node of another one.

    Raises BadSettings if there is none, AnnexError.
    """
    place = await Place.here(merge=True)
    if not place.remotes():
        raise BadSettings("this repository has no cluster remote; cluster-remote setup NAME URL makes one")
    views: list[View] = []
    unusable: list[Unusable] = []
    for name in place.remotes():
        try:
            views.append(place.remote(name, timeout))
        except (BadSettings, AnnexError) as error:
            # Show the others all the same.
            unusable.append(await _unusable(place, name, error))
    nodes = {uuid for view in views if view.uuid.is_cluster for uuid in view.uuids}
    return [view for view in views if view.uuid not in nodes], unusable


async def one_view(name: str, timeout: float | None) -> tuple[list[View], list[Unusable]]:
    """Do the same for one remote, which is shown even if it is not verified. Raises BadSettings, AnnexError."""
    place = await Place.here(merge=True)
    try:
        return [place.remote(name, timeout)], []
    except NotVerified as error:
        return [], [await _unusable(place, name, error)]


async def _unusable(place: Place, name: str, error: Exception) -> Unusable:
    uuid = UUID.parse(place.config.remote(name, "annex-uuid") or "")
    assert place.repository is not None
    waiting = await pending(place.repository, name) if isinstance(error, NotVerified) else None
    number = None if waiting is None else waiting.number
    return Unusable(name, uuid, place.logs.descriptions.get(uuid, ""), str(error), number)


async def view_of(name: str, timeout: float | None = None, *, writing: bool = False) -> View:
    """Return a remote of this repository. `writing` refuses where git-annex would. Raises BadSettings, AnnexError."""
    if looks_like_address(name):
        raise BadSettings(
            f"{name}: give a remote of this repository, which has a location log to compare; "
            f"cluster-remote setup NAME {name} makes one"
        )
    place = await Place.here(merge=True)
    if writing:
        check_writing(place.config)
    return place.remote(name, timeout)


async def views_at(url: str, timeout: float | None) -> list[View]:
    """Return what answers at an address, as seen from this repository, if this is one.

    Raises BadSettings, SessionError, AnnexError.
    """
    return await (await Place.anywhere(merge=True)).answering_at(url, timeout)
