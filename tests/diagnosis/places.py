"""Scripted nodes: a real one cannot be made to fail at a given question."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import NoReturn

import anyio.lowlevel

from cluster_remote.cluster.node import Node
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Download, Present, Removal, Session, Upload

__all__ = ["UUIDS", "Place", "has"]

UUIDS = [UUID(f"0000000{number}-0000-4000-8000-000000000000") for number in range(3)]


def has(number: int, key: Key) -> bool:
    """Return what the node of this number has: no two have the same."""
    return int(key.text.removeprefix("WORM--")) % (number + 2) == 0


class Place:
    """A node that fails at given keys."""

    def __init__(self, number: int, fail: Callable[[int, Key], SessionError | bool | None] | None = None) -> None:
        self.number = number
        self.fail = fail
        self.sessions = 0
        self.open = 0
        self.most_open = 0
        self.asked = 0
        self.node = Node(UUIDS[number], f"node{number}", "", 100.0, self._session)

    def _session(self) -> Session:
        self.sessions += 1
        return PlaceSession(self)


class PlaceSession(Session):
    name = "a place"
    version = 4

    def __init__(self, place: Place) -> None:
        self._place = place

    async def open(self) -> UUID:
        return self._place.node.uuid

    async def check_present(self, key: Key) -> bool:
        place = self._place
        place.open += 1
        place.most_open = max(place.open, place.most_open)
        try:
            await anyio.lowlevel.checkpoint()
            place.asked += 1
            failure = place.fail(place.asked, key) if place.fail else None
            if isinstance(failure, SessionError):
                raise failure
            return has(place.number, key) if failure is None else failure
        finally:
            place.open -= 1

    def upload(self, key: Key, file: AssociatedFile) -> AbstractAsyncContextManager[Present | Upload]:
        raise AssertionError("nobody asked for that")

    def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AbstractAsyncContextManager[Download]:
        raise AssertionError("nobody asked for that")

    async def remove(self, key: Key, before: int | None = None) -> Removal:
        raise AssertionError("nobody asked for that")

    async def timestamp(self) -> NoReturn:
        raise AssertionError("nobody asked for that")

    def lock(self, key: Key) -> AbstractAsyncContextManager[bool]:
        raise AssertionError("nobody asked for that")

    async def aclose(self) -> None:
        return
