"""Delegate uploads to git-annex's own gateway code, which evaluates the nodes' preferred content.

That code aborts an upload if it cannot connect to a node, and stores on nodes that `annex-readonly` protects (observed
with git-annex 10.20261026). So it only gets to see reachable and writable nodes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

import anyio

from cluster_remote.cluster.asking import NodeSessions
from cluster_remote.cluster.node import Node
from cluster_remote.cluster.routing import failure_of_all
from cluster_remote.p2p.errors import ConnectionLost, SessionError, Unreachable
from cluster_remote.p2p.session import Progress, Session, Source, Stored, Upload

__all__ = ["DelegatedUpload", "Delegation", "LeftOut", "Uploader"]

T = TypeVar("T")

# Makes a session that sees only these nodes: their names, each with the name of the session that reached it.
Uploader: TypeAlias = Callable[[Mapping[str, str]], Session]
LeftOut: TypeAlias = list[tuple[Node, SessionError]]


class Delegation:
    """A session that does the uploads, recreated whenever the set of reachable nodes changes."""

    def __init__(self, make: Uploader, ask: NodeSessions, name: str) -> None:
        self._make = make
        self._ask = ask
        self._name = name
        self._session: Session | None = None
        self._reachable: Mapping[str, str] = {}

    async def ask(self, nodes: Sequence[Node], request: Callable[[Session], Awaitable[T]]) -> tuple[T, LeftOut]:
        """Return the answer to a request that sees only the reachable `nodes`, and why the others are left out.

        Repeats the request if it fails because one of them is gone by now. Raises SessionError.
        """
        session, left_out = await self._session_for(nodes)
        try:
            return await request(session), left_out
        except (Unreachable, ConnectionLost):
            again, left_out = await self._session_for(nodes)
            if again is session:
                raise
            return await request(again), left_out

    async def _session_for(self, nodes: Sequence[Node]) -> tuple[Session, LeftOut]:
        awake, resting = self._ask.split_resting(nodes)
        left_out: LeftOut = [(node, self._ask.not_tried(node)) for node in resting if awake]
        reachable: dict[str, str] = {}

        async def connect(node: Node) -> None:
            answer = await self._ask.answer_of(node, lambda session: session.open())
            if isinstance(answer, SessionError):
                left_out.append((node, answer))
            else:
                reachable[node.name] = self._ask.session(node).name

        async with anyio.create_task_group() as tasks:
            for node in awake or resting:
                tasks.start_soon(connect, node)
        if not reachable:
            raise failure_of_all(f"{self._name}: no node is reachable", left_out)
        if self._session is None or reachable != self._reachable:
            await self.aclose()
            self._session, self._reachable = self._make(reachable), reachable
        return self._session, left_out

    async def aclose(self) -> None:
        """Close the session. Bounded in time, never raises."""
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()


class DelegatedUpload(Upload):
    """An upload whose outcome also says why nodes were left out."""

    def __init__(self, inside: Upload, reasons: tuple[str, ...]) -> None:
        self.offset = inside.offset
        self._inside = inside
        self._reasons = reasons

    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        return self._with_reasons(await self._inside.send(source, progress))

    async def check_arrived(self) -> Stored:
        return self._with_reasons(await self._inside.check_arrived())

    def _with_reasons(self, outcome: Stored) -> Stored:
        return replace(outcome, reasons=outcome.reasons + self._reasons)
