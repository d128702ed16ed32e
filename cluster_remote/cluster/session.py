"""The cluster as one session: many sessions that answer as one.

What a node that is away, stalls or fails means for a request: uploads leave it out, removals are partial, reads go to
the next node. Each is named in the outcome, with what happened.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Protocol, TypeGuard, TypeVar

import anyio

from cluster_remote.annex.errors import AnnexError
from cluster_remote.cluster import routing
from cluster_remote.cluster.asking import NodeSessions, within
from cluster_remote.cluster.delegation import DelegatedUpload, Delegation, LeftOut, Uploader
from cluster_remote.cluster.download import ClusterDownload, Helpers
from cluster_remote.cluster.node import Node
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.cluster.routing import UploadAnswer
from cluster_remote.cluster.upload import Attempt, ClusterUpload, store_everywhere, task_group
from cluster_remote.p2p import MAX_VERSION
from cluster_remote.p2p.checksum import Checksum
from cluster_remote.p2p.client import DEFAULT_TIMEOUT, patience_for, reading_time
from cluster_remote.p2p.errors import ConnectionLost, ProtocolError, Refused, SessionError, TimedOut, Unreachable
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Download, Present, Progress, Removal, Session, Source, Stored, Upload

__all__ = ["ClusterSession", "Locations", "Recorder"]

T = TypeVar("T")

# Seconds for all sessions together to close; each is bounded by itself.
_CLOSING = 20.0
# Seconds for finding out what a node has done that gave no answer, and until it is asked a second time.
_FINDING_OUT, _SECOND_LOOK = 6.0, 1.0

NONE_MISSING: Mapping[UUID, str] = MappingProxyType({})


class Locations(Protocol):
    """Who has what, as far as it is known here."""

    async def locations(self, key: Key) -> frozenset[UUID]:
        """The repositories that have the content of `key`. Raises AnnexError."""


class Closable(Protocol):
    async def aclose(self) -> None: ...


class Recorder(Protocol):
    """Where it is written down that content came or went."""

    def expect(self) -> None:
        """Something will come soon: what it takes to record it can be started meanwhile. Never raises."""

    async def record(self, key: Key, present: Collection[UUID] = (), absent: Collection[UUID] = ()) -> None:
        """Returns when it is written; not later than after a minute. Raises AnnexError."""


def _may_have_begun(answer: Removal | SessionError) -> TypeGuard[SessionError]:
    """Whether a node that gave no answer to a removal may have done it."""
    return isinstance(answer, ConnectionLost | TimedOut | ProtocolError)


async def _leave(key: Key, session: Session) -> Removal:
    """What a removal comes to on a node that may not be written to: done only if there is nothing to be removed."""
    if await session.check_present(key):
        return Removal(False, reasons=("has it and may not be written to (annex-readonly)",))
    return Removal(True)


def _any_of(count: int) -> int:
    # Not the random module: it takes longer to import than a small file takes to store.
    return int.from_bytes(os.urandom(4), "big") % count


class ClusterSession(Session):
    """See Session. Takes one request at a time, and goes to as many nodes at once as that request needs.

    Sessions with the nodes are made when first needed and kept. After an error this session goes on as before.
    """

    def __init__(
        self,
        uuid: UUID,
        nodes: Sequence[Node],
        locations: Locations | None,
        *,
        name: str,
        record: Recorder | None = None,
        record_uploads: bool = True,
        missing: Mapping[UUID, str] = NONE_MISSING,
        uploader: Uploader | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
        pick: routing.Pick = _any_of,
        reachability: Reachability | None = None,
    ) -> None:
        """`nodes` are at least one, each with a name of its own.

        `locations` is None where no log knows which node has what: then every node may, and all are asked.
        `record` is told what came and went before a request returns; None where the caller records it, who can also
        keep the recording of uploads to itself. `missing` are nodes of the cluster that nothing leads to from here, and
        what people call them: no removal is complete without them. `uploader`, if
        given, makes the session that does all uploads in place of the nodes' sessions (git-annex's own gateway code,
        where preferred content has to decide). `timeout` is how long a node may keep the others waiting before it says
        anything, in seconds.
        `clock` is the monotonic clock that `timestamp` reads, in seconds.
        """
        if not nodes:
            raise ValueError("a cluster without nodes cannot do anything")
        if len({node.name for node in nodes}) < len(nodes):
            raise ValueError("two nodes of a cluster have the same name")
        self.uuid = uuid
        self.nodes = tuple(nodes)
        self._name = name
        self._locations = locations
        self._recorder = record
        self._record_uploads = record_uploads
        self._missing = dict(missing)
        # Whom an answer may name.
        self._cluster = frozenset(missing).union(*(node.repositories for node in self.nodes))
        self._clock = clock
        self._pick = pick
        self._ask = NodeSessions(timeout, reachability or Reachability(clock))
        self._delegation = None if uploader is None else Delegation(uploader, self._ask, name)
        self._owned: list[Closable] = []
        self._busy = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> int | None:
        """The newest: what a node cannot do is answered for that node."""
        return MAX_VERSION

    async def open(self) -> UUID:
        """Says who answers. Nothing is opened: the cluster is this very process, and a node is asked when needed."""
        return self.uuid

    def owns(self, resource: Closable) -> None:
        """Makes this session close `resource` together with itself."""
        self._owned.append(resource)

    async def aclose(self) -> None:
        closing: list[Closable] = [self._ask, *self._owned]
        if self._delegation is not None:
            closing.append(self._delegation)
        with anyio.move_on_after(_CLOSING, shield=True):
            async with anyio.create_task_group() as tasks:
                for each in closing:
                    tasks.start_soon(each.aclose)

    # Reading

    async def check_present(self, key: Key) -> bool:
        """Whether any node has it.

        Only the nodes that have it by the log are asked, one after the other, the next one also while one keeps silent;
        where no log can know (chunks, encrypted content) all of them. Raises SessionError when none said yes and one of
        those asked gave no answer.
        """
        with self._request():
            order = routing.reading_order(self.nodes, await self._holders(key), self._pick)
            awake, later = self._ask.rested(order.logged)
            if not self._logged(key):
                later += order.others
            answers = await self._ask.until(
                True, [*([node] for node in awake), later], lambda session: session.check_present(key)
            )
            present = routing.presence(answer for _, answer in answers)
            if present is None and not self._logged(key) and routing.absent_where_reachable(a for _, a in answers):
                # No log knows. An upload reaches every node that is there, so what is on none of these is most likely
                # on no other; and the worst of a wrong "absent" is extra work.
                return False
            if present is None:
                failures = [(node, answer) for node, answer in answers if isinstance(answer, SessionError)]
                raise routing.failure_of_all(f"{self.name}: whether it has {key} cannot be told", failures)
            return present

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        """See Session. The node that the content comes from may change on the way, at any byte."""
        with self._request():
            order = routing.reading_order(self.nodes, await self._holders(key), self._pick)
            awake, resting = self._ask.rested(self._ask.others_first(key, [*order.logged, *order.others]))

            def patience(node: Node) -> float:
                # What is at hand comes at once, what git-annex has to fetch first takes its time.
                return (reading_time if node.kind in ("local", "ssh") else patience_for)(key.size)

            @asynccontextmanager
            async def fetch(node: Node, position: int) -> AsyncIterator[Download]:
                async with AsyncExitStack() as stack:
                    with self._ask.observed(node):
                        download = self._ask.session(node).download(key, file, position)
                        given = await stack.enter_async_context(within(self._ask.timeout + patience(node), download))
                    self._ask.gives(key, node)
                    yield given

            @asynccontextmanager
            async def fetch_first(node: Node, position: int) -> AsyncIterator[Download]:
                with self._ask.traffic.reading(node.name):
                    async with fetch(node, position) as given:
                        yield given

            # What git-annex has to fetch first comes as a whole or not at all; another gateway leads to the same nodes.
            direct = [node for node in awake if node in order.logged and node.kind in ("local", "ssh")]
            async with task_group() as tasks:
                download = ClusterDownload(
                    f"{self.name}: no node gave {key}",
                    [*awake, *resting],
                    fetch_first,
                    offset,
                    key.content_size,
                    self._ask.broke_off,
                    self._ask.silent,
                    tasks=tasks,
                    head_start=lambda node: self._ask.head_start + patience(node),
                    alike=key.is_verifiable,
                    helpers=Helpers(direct, fetch, self._ask.traffic, partial(Checksum.of, key)),
                )
                try:
                    await download.begin()
                    yield download
                finally:
                    await download.aclose()

    # Writing

    @asynccontextmanager
    async def upload(self, key: Key, file: AssociatedFile) -> AsyncIterator[Present | Upload]:
        """See Session. The offset is the lowest that any node asks for.

        A node that says nothing within the timeout is left out. Raises SessionError if no node can take the content.
        """
        with self._request():
            if self._delegation is not None:
                async with AsyncExitStack() as stack:

                    async def enter(session: Session) -> Present | Upload:
                        return await stack.enter_async_context(session.upload(key, file))

                    offered, away = await self._delegation.ask(self._writable(), enter)
                    reasons = await self._reasons(key, away)
                    yield DelegatedUpload(offered, reasons) if isinstance(offered, Upload) else offered
                return
            targets, left_out = self._upload_targets(await self._holders(key))
            attempts = [Attempt(node) for node in targets]

            @asynccontextmanager
            async def offer(node: Node) -> AsyncIterator[Present | Upload]:
                with self._ask.observed(node) as observed:
                    upload = self._ask.session(node).upload(key, file)
                    async with within(self._ask.timeout + reading_time(key.size), upload) as offered:
                        observed.moved()
                        yield offered

            async def conclude() -> Stored:
                answers = [(a.node, a.answer) for a in attempts if a.answer is not None]
                outcome = await self._uploaded(key, [*answers, *left_out])
                return Stored(True, present=outcome.uuids) if isinstance(outcome, Present) else outcome

            async with task_group() as tasks:
                for attempt in attempts:
                    tasks.start_soon(attempt.run, offer)
                for attempt in attempts:
                    await attempt.offered.wait()
                waiting = [(a, a.offset) for a in attempts if a.answer is None and a.offset is not None]
                if waiting:
                    self._expect_to_record()
                    yield ClusterUpload(f"{self.name}: no node took {key}", waiting, conclude)
                else:
                    for attempt in attempts:
                        await attempt.ended.wait()
                    outcome = await conclude()
                    if not outcome.stored:
                        raise self._failure(key, [*((a.node, a.answer) for a in attempts), *left_out])
                    yield Present(outcome.uuids | outcome.present)

    async def store(
        self, key: Key, file: AssociatedFile, source: Source, progress: Progress | None = None
    ) -> Present | Stored:
        """See Session. From a file every node is served at its own pace, and this returns when the slowest is done."""
        if not source.repeatable:
            return await super().store(key, file, source, progress)
        with self._request():
            if self._delegation is not None:
                stored, away = await self._delegation.ask(
                    self._writable(), lambda session: session.store(key, file, source, progress)
                )
                if isinstance(stored, Present):
                    return stored
                return replace(stored, reasons=stored.reasons + await self._reasons(key, away))
            targets, left_out = self._upload_targets(await self._holders(key))

            async def store(node: Node, tell: Progress) -> Present | Stored:
                with self._ask.observed(node) as observed:

                    def moved(position: int) -> None:
                        observed.moved()
                        tell(position)

                    return await self._ask.session(node).store(key, file, source, moved)

            self._expect_to_record()
            answers, failure = await store_everywhere(targets, store, progress)
            outcome = await self._uploaded(key, [*answers, *left_out])
            if failure is not None:
                raise failure
            return outcome

    async def _uploaded(self, key: Key, answers: Sequence[tuple[Node, UploadAnswer]]) -> Present | Stored:
        """What the nodes' answers come to. Recorded not before all of them are there: until then, it may be undone."""
        outcome = routing.upload_outcome(answers, self._cluster)
        if self._record_uploads:
            present = outcome.present if isinstance(outcome, Stored) else frozenset()
            with anyio.CancelScope(shield=True):
                await self._record(key, present=outcome.uuids | present)
        if isinstance(outcome, Stored) and outcome.stored:
            return replace(outcome, reasons=outcome.reasons + self._nothing_leads_to())
        return outcome

    def _nothing_leads_to(self) -> tuple[str, ...]:
        return tuple(f"{name}: no remote of this repository leads to it: left out" for name in self._missing.values())

    async def _reasons(self, key: Key, left_out: LeftOut) -> tuple[str, ...]:
        """Why nodes that lack the content by the log did not get it, in words."""
        lacking = routing.lacking((node for node, _ in left_out), await self._holders(key))
        told = tuple(routing.reason(node, error) for node, error in left_out if node in lacking)
        return told + self._nothing_leads_to()

    async def remove(self, key: Key, before: int | None = None) -> Removal:
        """See Session. From every node, whatever the log says, also from one that could not be reached just now.

        With `before`, each node's clock is read, then our own, and the time that is left by ours is what the node gets:
        an answer on its way makes that shorter, never longer. A node that has no clock to ask does not remove.
        """

        async def request(session: Session) -> Removal:
            if before is None:
                return await session.remove(key)
            theirs = await session.timestamp()
            left = before - math.ceil(self._clock())
            if left < 0:
                return Removal(False, reasons=("the time that was allowed for the removal is over",))
            return await session.remove(key, theirs + left)

        outcome = await self._remove(key, self.nodes, request)
        missing = tuple(f"{name}: no remote of this repository leads to it" for name in self._missing.values())
        return Removal(outcome.removed and not missing, outcome.uuids, outcome.reasons + missing)

    async def remove_from(self, key: Key, uuids: frozenset[UUID]) -> Removal:
        """Removes the content from these nodes alone. Another gateway is asked only if all behind it are among them."""
        nodes = [node for node in self.nodes if node.repositories and node.repositories <= uuids]
        outcome = await self._remove(key, nodes, lambda session: session.remove(key))
        return Removal(outcome.removed and uuids <= outcome.uuids, outcome.uuids, outcome.reasons)

    async def _remove(
        self, key: Key, nodes: Sequence[Node], request: Callable[[Session], Awaitable[Removal]]
    ) -> Removal:
        with self._request():
            answers: dict[str, Removal | SessionError] = {}
            unrecorded: list[SessionError] = []

            async def one(node: Node) -> None:
                answer: Removal | SessionError = ConnectionLost("given up")
                try:
                    wanted = request if node.writable else partial(_leave, key)
                    answer = await self._ask.caught(node, wanted, reading_time(key.size))
                finally:
                    # What a node does without saying so, it may do all the same; nor does it ask whether anybody waits.
                    with anyio.CancelScope(shield=True):
                        if _may_have_begun(answer) and not node.uuid.is_cluster:
                            answer = await self._found_out(node, key, answer)
                        answers[node.name] = answer
                        await self._record_now(unrecorded, key, absent=routing.lost(node, answer, self._cluster))

            self._expect_to_record()
            async with anyio.create_task_group() as tasks:
                for node in nodes:
                    tasks.start_soon(one, node)
            if unrecorded:
                raise unrecorded[0]
            return routing.removal_outcome([(node, answers[node.name]) for node in nodes], self._cluster)

    async def _found_out(self, node: Node, key: Key, error: SessionError) -> Removal | SessionError:
        """What became of a removal that a node gave no answer to, as far as it says so within a few seconds."""
        found = error
        with anyio.move_on_after(min(_FINDING_OUT, self._ask.timeout)):
            for pause in (0.0, _SECOND_LOOK):
                await anyio.sleep(pause)
                match await self._ask.caught(node, lambda session: session.check_present(key)):
                    case False:
                        return Removal(True, frozenset({node.uuid}))
                    case True:
                        found = type(error)(f"{error}; it still has the content")
        return found

    async def timestamp(self) -> int:
        """Seconds of our own clock, whoever is away: the nodes' clocks are asked when it comes to a removal."""
        return math.floor(self._clock())

    @asynccontextmanager
    async def lock(self, key: Key) -> AsyncIterator[bool]:
        """Never locks: a cluster is no copy, its nodes are, and each of them can be locked."""
        with self._request():
            yield False

    @contextmanager
    def _request(self) -> Iterator[None]:
        if self._busy:
            raise RuntimeError(f"{self.name}: a session takes one request at a time")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _upload_targets(self, holders: frozenset[UUID]) -> tuple[list[Node], list[tuple[Node, Unreachable]]]:
        """The nodes that lack it and are to be asked, and those that are left out for now.

        All nodes where the log says that none lacks it: whoever wants to store a content that is there already has
        reason to doubt that, and may drop its own copy because of the answer.
        """
        writable = self._writable()
        awake, resting = self._ask.rested(routing.lacking(writable, holders) or writable)
        if not awake:
            return resting, []
        return awake, [(node, self._ask.not_tried(node)) for node in resting]

    def _writable(self) -> list[Node]:
        writable = [node for node in self.nodes if node.writable]
        if not writable:
            raise Refused(f"{self.name}: no node may be written to: annex-readonly is set for all of their remotes")
        return writable

    # The log

    def _logged(self, key: Key) -> bool:
        return self._locations is not None and routing.in_log(key)

    async def _holders(self, key: Key) -> frozenset[UUID]:
        if self._locations is None or not routing.in_log(key):
            return frozenset()
        try:
            return await self._locations.locations(key)
        except AnnexError as error:
            raise SessionError(f"{self.name}: {error}") from None

    def _expect_to_record(self) -> None:
        if self._recorder is not None:
            self._recorder.expect()

    async def _record_now(
        self, failures: list[SessionError], key: Key, present: Collection[UUID] = (), absent: Collection[UUID] = ()
    ) -> None:
        """Records what one node has done, while others are still at work, even if nobody waits for the outcome any
        more: it is done. That it could not be recorded is the failure of the request, not that of the node."""
        with anyio.CancelScope(shield=True):
            try:
                await self._record(key, present, absent)
            except SessionError as error:
                failures.append(error)

    async def _record(self, key: Key, present: Collection[UUID] = (), absent: Collection[UUID] = ()) -> None:
        if self._recorder is None or not (present or absent):
            return
        try:
            await self._recorder.record(key, present=present, absent=absent)
        except AnnexError as error:
            done = "stored on" if present else "removed from"
            where = ", ".join(sorted(str(uuid) for uuid in (present or absent)))
            raise SessionError(
                f"{self.name}: {key} was {done} {where}, but that could not be recorded: {error}"
            ) from None

    def _failure(self, key: Key, answers: Iterable[tuple[Node, object]]) -> SessionError:
        failures = [(node, answer) for node, answer in answers if isinstance(answer, SessionError)]
        return routing.failure_of_all(f"{self.name}: no node took {key}", failures)
