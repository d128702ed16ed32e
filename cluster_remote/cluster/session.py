"""Combine the sessions with many nodes into one session with the cluster.

If a node is unreachable, stalls or fails, uploads leave it out, removals are partial, and reads go to the next node.
The result names each such node and what happened.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
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
from cluster_remote.cluster.wrapping import InMemory
from cluster_remote.limits import too_many_nodes
from cluster_remote.p2p import MAX_VERSION
from cluster_remote.p2p.checksum import Checksum
from cluster_remote.p2p.errors import ConnectionLost, ProtocolError, Refused, SessionError, TimedOut, Unreachable
from cluster_remote.p2p.exhaustion import Exhausted
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Download, Present, Progress, Removal, Session, Source, Stored, Upload
from cluster_remote.p2p.timeouts import DEFAULT_TIMEOUT, extra_timeout_for, reading_time

__all__ = ["ClusterSession", "Locations", "Recorder"]

T = TypeVar("T")

# Seconds for all sessions together to close; each has its own deadline, too.
_CLOSING = 20.0
# Seconds to check what a silent node has done, and between the first check and the second.
_CHECKING, _RECHECK = 6.0, 1.0

NONE_MISSING: Mapping[UUID, str] = MappingProxyType({})


class Locations(Protocol):
    """A source of content locations, such as the location log."""

    async def locations(self, key: Key) -> frozenset[UUID]:
        """Return the repositories that have the content of `key`. Raises AnnexError."""


class Closable(Protocol):
    async def aclose(self) -> None: ...


class Recorder(Protocol):
    """Record that content was added or removed."""

    def expect(self) -> None:
        """Prepare for recording soon, in the background. Never raises."""

    async def record(self, key: Key, present: Collection[UUID] = (), absent: Collection[UUID] = ()) -> None:
        """Record, and return when it is written, within a minute. Raises AnnexError."""


def _may_have_begun(answer: Removal | SessionError) -> TypeGuard[SessionError]:
    """Return whether a node that did not answer a removal may have carried it out."""
    return isinstance(answer, ConnectionLost | TimedOut | ProtocolError)


def _require_room_for(nodes: Collection[Node]) -> None:
    """Raise Exhausted if this process may not have enough open files to work with all these nodes at once."""
    if reason := too_many_nodes(len(nodes)):
        raise Exhausted(reason)


async def _remove_read_only(key: Key, session: Session) -> Removal:
    """Return the outcome of a removal on a read-only node: a success only if the content is absent."""
    if await session.check_present(key):
        return Removal(False, reasons=("has it and is read-only (annex-readonly)",))
    return Removal(True)


def _random_index(count: int) -> int:
    # Not the random module: importing it takes longer than storing a small file.
    return int.from_bytes(os.urandom(4), "big") % count


class ClusterSession(Session):
    """See Session. Takes one request at a time, and uses as many nodes at once as that request needs.

    Sessions with nodes are created when first needed, and kept. This session stays usable after an error.
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
        pick: routing.Pick = _random_index,
        reachability: Reachability | None = None,
    ) -> None:
        """`nodes` is not empty, and their names are unique.

        `locations` is None if no log tracks the content: then every node may have it, and all are asked. `record` is
        called with changes before a request returns; None if the caller records them. `missing` are nodes of the
        cluster without a remote here, with their descriptions: no removal is complete without them. `uploader`, if
        given, creates the session that does all uploads (git-annex's own gateway code, for preferred content).
        `timeout` is how long a node may keep the others waiting for an answer, in seconds. `clock` is the monotonic
        clock that `timestamp` reads, in seconds.
        """
        if not nodes:
            raise ValueError("a cluster needs at least one node")
        if len({node.name for node in nodes}) < len(nodes):
            raise ValueError("two nodes of a cluster have the same name")
        self.uuid = uuid
        self.nodes = tuple(nodes)
        self._name = name
        self._locations = locations
        self._recorder = record
        self._record_uploads = record_uploads
        self._missing = dict(missing)
        # The repositories that an answer may name.
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
        """Return the newest version: sessions with older nodes adapt individually."""
        return MAX_VERSION

    async def open(self) -> UUID:
        """Return the cluster's UUID. Connects to nothing: nodes are asked on demand."""
        return self.uuid

    def owns(self, resource: Closable) -> None:
        """Make `aclose` close `resource` too."""
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
        """Return whether any node has the content.

        Asks only the nodes that have it according to the log, one after the other, without waiting long for silent
        ones; all nodes if no log tracks the content (chunks, encrypted content). Raises SessionError if no node has it
        and one did not answer.
        """
        with self._request():
            order = routing.reading_order(self.nodes, await self._holders(key), self._pick)
            awake, later = self._ask.split_resting(order.logged)
            if not self._logged(key):
                later += order.others
            answers = await self._ask.ask_until(
                True, [*([node] for node in awake), later], lambda session: session.check_present(key)
            )
            present = routing.presence(answer for _, answer in answers)
            if present is None and not self._logged(key) and routing.absent_where_reachable(a for _, a in answers):
                # Uploads go to every reachable node, so content that no reachable node has is most likely on no other
                # node either. No log tracks it, so the worst effect of a wrong "absent" is extra work.
                return False
            if present is None:
                raise self._failure(f"cannot tell whether it has {key}", answers)
            return present

    async def check_everywhere(self, key: Key) -> bool:
        """See Session. Asks every node that is not known to be unreachable: uploads go to no other."""
        if await self.check_present(key):
            return True
        with self._request():
            awake, _ = self._ask.split_resting(self.nodes)
            answers = await self._ask.ask_until(True, [awake], lambda session: session.check_present(key))
            found = [answer for _, answer in answers]
            if True not in found and not routing.absent_where_reachable(found):
                raise self._failure(f"cannot tell whether it has {key}", answers)
            return True in found

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        """See Session. The sending node may change at any byte."""
        with self._request():
            order = routing.reading_order(self.nodes, await self._holders(key), self._pick)
            awake, resting = self._ask.split_resting(self._ask.recent_senders_last(key, [*order.logged, *order.others]))
            small = await self._read_small(key, awake)
            if small is not None and offset <= len(small):
                yield InMemory(memoryview(small)[offset:], awake[0].uuid)
                return

            def extra_timeout(node: Node) -> float:
                # A repository sends content at once; git-annex has to fetch it first from anything else.
                return (reading_time if node.kind in ("local", "ssh") else extra_timeout_for)(key.size)

            @asynccontextmanager
            async def fetch(node: Node, position: int) -> AsyncIterator[Download]:
                async with AsyncExitStack() as stack:
                    with self._ask.observed(node):
                        download = self._ask.session(node).download(key, file, position)
                        started = await stack.enter_async_context(
                            within(self._ask.timeout + extra_timeout(node), download)
                        )
                    self._ask.sends(key, node)
                    yield started

            @asynccontextmanager
            async def fetch_first(node: Node, position: int) -> AsyncIterator[Download]:
                with self._ask.traffic.reading(node.name):
                    async with fetch(node, position) as started:
                        yield started

            # Proxied nodes cannot send a part alone, and another gateway leads to the same nodes.
            direct = [node for node in awake if node in order.logged and node.kind in ("local", "ssh")]
            async with task_group() as tasks:
                download = ClusterDownload(
                    f"{self.name}: no node sent {key}",
                    [*awake, *resting],
                    fetch_first,
                    offset,
                    key.content_size,
                    self._ask.failed_midway,
                    self._ask.silent,
                    tasks=tasks,
                    head_start=lambda node: self._ask.head_start + extra_timeout(node),
                    alike=key.is_verifiable,
                    helpers=Helpers(direct, fetch, self._ask.traffic, partial(Checksum.of, key)),
                )
                try:
                    await download.begin()
                    yield download
                finally:
                    await download.aclose()

    async def _read_small(self, key: Key, nodes: Sequence[Node]) -> bytes | None:
        """Return the content if the first node is on a local disk and it is small: all else takes longer to set up."""
        content = None
        with suppress(SessionError), anyio.move_on_after(self._ask.head_start):
            content = await self._ask.session(nodes[0]).read_small(key) if nodes else None
        if content is not None:
            self._ask.sends(key, nodes[0])
        return content

    # Writing

    @asynccontextmanager
    async def upload(self, key: Key, file: AssociatedFile) -> AsyncIterator[Present | Upload]:
        """See Session. The offset is the lowest that any node requests.

        Leaves out nodes that do not answer in time. Raises SessionError if no node can accept the content.
        """
        with self._request():
            if self._delegation is not None:
                async with AsyncExitStack() as stack:

                    async def enter(session: Session) -> Present | Upload:
                        return await stack.enter_async_context(session.upload(key, file))

                    offered, skipped = await self._delegation.ask(self._writable(), enter)
                    reasons = await self._reasons(key, skipped)
                    yield DelegatedUpload(offered, reasons) if isinstance(offered, Upload) else offered
                return
            targets, left_out = self._upload_targets(await self._holders(key))
            attempts = [Attempt(node) for node in targets]

            @asynccontextmanager
            async def offer(node: Node) -> AsyncIterator[Present | Upload]:
                with self._ask.observed(node) as observed:
                    upload = self._ask.session(node).upload(key, file)
                    async with within(self._ask.timeout + reading_time(key.size), upload) as offered:
                        observed.progressed()
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
                    yield ClusterUpload(f"{self.name}: no node accepted {key}", waiting, conclude)
                else:
                    for attempt in attempts:
                        await attempt.ended.wait()
                    outcome = await conclude()
                    if not outcome.stored:
                        raise self._failure(
                            f"no node accepted {key}", [*((a.node, a.answer) for a in attempts), *left_out]
                        )
                    yield Present(outcome.uuids | outcome.present)

    async def store(
        self, key: Key, file: AssociatedFile, source: Source, progress: Progress | None = None
    ) -> Present | Stored:
        """See Session. Each node reads the file at its own pace; this returns when the slowest is done."""
        if not source.repeatable:
            return await super().store(key, file, source, progress)
        with self._request():
            if self._delegation is not None:
                stored, skipped = await self._delegation.ask(
                    self._writable(), lambda session: session.store(key, file, source, progress)
                )
                if isinstance(stored, Present):
                    return stored
                return replace(stored, reasons=stored.reasons + await self._reasons(key, skipped))
            targets, left_out = self._upload_targets(await self._holders(key))

            async def store(node: Node, tell: Progress) -> Present | Stored:
                with self._ask.observed(node) as observed:

                    def report(position: int) -> None:
                        observed.progressed()
                        tell(position)

                    return await self._ask.session(node).store(key, file, source, report)

            self._expect_to_record()
            answers, failure = await store_everywhere(targets, store, progress)
            outcome = await self._uploaded(key, [*answers, *left_out])
            if failure is not None:
                raise failure
            return outcome

    async def _uploaded(self, key: Key, answers: Sequence[tuple[Node, UploadAnswer]]) -> Present | Stored:
        """Combine the nodes' answers. Record them only when all have arrived: until then, git-annex may undo it."""
        outcome = routing.upload_outcome(answers, self._cluster)
        if self._record_uploads:
            present = outcome.present if isinstance(outcome, Stored) else frozenset()
            with anyio.CancelScope(shield=True):
                await self._record(key, present=outcome.uuids | present)
        if isinstance(outcome, Stored) and outcome.stored:
            return replace(outcome, reasons=outcome.reasons + self._without_remote())
        return outcome

    def _without_remote(self) -> tuple[str, ...]:
        """Return a message for each node that this repository has no remote for."""
        return tuple(
            f"{name}: no remote of this repository is configured as this node: left out"
            for name in self._missing.values()
        )

    async def _reasons(self, key: Key, left_out: LeftOut) -> tuple[str, ...]:
        """Return why nodes that lack the content, according to the log, did not get it."""
        lacking = routing.lacking((node for node, _ in left_out), await self._holders(key))
        reasons = tuple(routing.reason(node, error) for node, error in left_out if node in lacking)
        return reasons + self._without_remote()

    async def remove(self, key: Key, before: int | None = None) -> Removal:
        """See Session. Removes from every node, regardless of the log, even from a recently unreachable one.

        With `before`, reads each node's clock, then our own, and grants the node the time left on ours: a delayed
        answer shortens that time, and never extends it. A node without a clock does not remove.
        """

        async def request(session: Session) -> Removal:
            if before is None:
                return await session.remove(key)
            theirs = await session.timestamp()
            left = before - math.ceil(self._clock())
            if left < 0:
                return Removal(False, reasons=("the time allowed for the removal is over",))
            return await session.remove(key, theirs + left)

        outcome = await self._remove(key, self.nodes, request)
        missing = self._without_remote()
        return Removal(outcome.removed and not missing, outcome.uuids, outcome.reasons + missing)

    async def remove_from(self, key: Key, uuids: frozenset[UUID]) -> Removal:
        """Remove the content from these nodes only. Skip gateways that also lead to others."""
        nodes = [node for node in self.nodes if node.repositories and node.repositories <= uuids]
        outcome = await self._remove(key, nodes, lambda session: session.remove(key))
        return Removal(outcome.removed and uuids <= outcome.uuids, outcome.uuids, outcome.reasons)

    async def _remove(
        self, key: Key, nodes: Sequence[Node], request: Callable[[Session], Awaitable[Removal]]
    ) -> Removal:
        with self._request():
            _require_room_for(nodes)
            answers: dict[str, Removal | SessionError] = {}
            unrecorded: list[SessionError] = []

            async def one(node: Node) -> None:
                answer: Removal | SessionError = ConnectionLost("cancelled")
                try:
                    wanted = request if node.writable else partial(_remove_read_only, key)
                    answer = await self._ask.answer_of(node, wanted, reading_time(key.size))
                finally:
                    # A node that does not answer may still remove the content, whether or not the request is cancelled
                    # here.
                    with anyio.CancelScope(shield=True):
                        if _may_have_begun(answer) and not node.uuid.is_cluster:
                            answer = await self._check_removal(node, key, answer)
                        answers[node.name] = answer
                        await self._record_now(unrecorded, key, absent=routing.lost(node, answer, self._cluster))

            self._expect_to_record()
            async with anyio.create_task_group() as tasks:
                for node in nodes:
                    tasks.start_soon(one, node)
            if unrecorded:
                raise unrecorded[0]
            return routing.removal_outcome([(node, answers[node.name]) for node in nodes], self._cluster)

    async def _check_removal(self, node: Node, key: Key, error: SessionError) -> Removal | SessionError:
        """Check, within a few seconds, what a node that did not answer a removal has done."""
        found = error
        with anyio.move_on_after(min(_CHECKING, self._ask.timeout)):
            for pause in (0.0, _RECHECK):
                await anyio.sleep(pause)
                match await self._ask.answer_of(node, lambda session: session.check_present(key)):
                    case False:
                        return Removal(True, frozenset({node.uuid}))
                    case True:
                        found = type(error)(f"{error}; it still has the content")
        return found

    async def timestamp(self) -> int:
        """Return our own clock in seconds. It is always available; removals read the nodes' clocks later."""
        return math.floor(self._clock())

    @asynccontextmanager
    async def lock(self, key: Key) -> AsyncIterator[bool]:
        """Never lock: a cluster is not a copy; its nodes are, and each can be locked."""
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
        """Return the nodes that lack the content and will be asked, and those that are left out for now.

        If the log lists all nodes, ask all: a client that stores content that is already there has a reason to doubt
        the log, and may drop its own copy because of the answer.
        """
        writable = self._writable()
        awake, resting = self._ask.split_resting(routing.lacking(writable, holders) or writable)
        _require_room_for(awake or resting)
        if not awake:
            return resting, []
        return awake, [(node, self._ask.not_tried(node)) for node in resting]

    def _writable(self) -> list[Node]:
        writable = [node for node in self.nodes if node.writable]
        if not writable:
            raise Refused(f"{self.name}: all nodes are read-only: annex-readonly is set for all their remotes")
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
        """Record what one node has done while others are still working, even if the request has been cancelled.

        If recording fails, the request fails, not the node.
        """
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
                f"{self.name}: {key} was {done} {where}, but this could not be recorded: {error}"
            ) from None

    def _failure(self, what: str, answers: Iterable[tuple[Node, object]]) -> SessionError:
        failures = [(node, answer) for node, answer in answers if isinstance(answer, SessionError)]
        return routing.failure_of_all(f"{self.name}: {what}", failures)
