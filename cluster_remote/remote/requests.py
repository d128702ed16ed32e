"""Handle git-annex's requests that need a session. Imported together with the event loop."""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from annexremote import RemoteError

from cluster_remote.access.settings import Settings
from cluster_remote.access.tokens import given_token, stored_token
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.errors import AuthenticationFailed, SessionError
from cluster_remote.p2p.key import Key
from cluster_remote.p2p.messages import Message, describe
from cluster_remote.p2p.session import Progress, Session
from cluster_remote.remote.causes import Fetched, is_for_fsck
from cluster_remote.remote.chunks import is_plain_chunk, whole_of
from cluster_remote.remote.context import Context
from cluster_remote.remote.failure import leaf_errors, message_of
from cluster_remote.remote.initremote import initialise, refuse_embedding
from cluster_remote.remote.protocol import AnnexMaster, one_line
from cluster_remote.remote.remote import ClusterRemote
from cluster_remote.remote.removal import remove
from cluster_remote.remote.storing import store
from cluster_remote.remote.watch import KeptWatch

__all__ = ["Requests", "converse"]

T = TypeVar("T")

# Seconds between two PROGRESS messages; git-annex shows a few per second.
_PROGRESS_INTERVAL = 0.2
# Seconds that git annex info waits for the server.
_INFO_TIMEOUT = 10.0


async def converse(master: AnnexMaster, function: Callable[..., T], *arguments: object) -> T:
    """Run a function that may ask git-annex in a thread; until it returns, messages to this job are replies."""
    with master.conversation():
        # One thread per job: jobs that wait for git-annex must not block others.
        limiter = anyio.CapacityLimiter(math.inf)
        return await anyio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True, limiter=limiter)


class Requests:
    """Handle requests for all jobs of one process, with one context; `remote` belongs to the job."""

    def __init__(self) -> None:
        self._context: Context | None = None
        self._watch = KeptWatch()

    def abandon(self) -> None:
        """Cancel the running requests."""
        if self._context is not None:
            self._context.cancel_requests()

    async def aclose(self) -> None:
        """Close the connections, and let git-annex commit what was recorded."""
        self._watch.close()
        if self._context is not None:
            await self._context.aclose()
            self._context = None

    # In the event loop

    async def store(self, remote: ClusterRemote, key: str, path: bytes) -> None:
        async def answer(context: Context, session: Session, parsed: Key) -> None:
            context.causes.take(parsed)
            await store(context, session, parsed, path, _progress(remote), remote.tell)

        await self._ask(remote, answer, _key(key))

    async def retrieve(self, remote: ClusterRemote, key: str, path: bytes) -> None:
        self._watch.keep(os.path.dirname(path) or b".")  # noqa: PTH120 -- bytes

        async def answer(context: Context, session: Session, parsed: Key) -> None:
            context.causes.take(parsed)
            if is_plain_chunk(parsed):
                context.causes.remember_chunk(whole_of(parsed), path)
            if not is_for_fsck(path):
                await context.fetch(session, parsed, path, _progress(remote), remote.tell)
                return
            origin = await context.fetch_from_one(session, parsed, path, _progress(remote))
            context.causes.remember(parsed, Fetched(origin))

        await self._ask(remote, answer, _key(key))

    async def check_present(self, remote: ClusterRemote, key: str) -> bool:
        return await self._ask(remote, _check_present, _key(key))

    async def remove(self, remote: ClusterRemote, key: str) -> None:
        await self._ask(remote, _remove, _key(key))

    # In a thread

    def initialise(self, remote: ClusterRemote) -> None:
        with _as_remote_error(remote):
            refuse_embedding(remote.annex.getconfig("embedcreds"))

        async def check() -> str:
            context = await self._ready(remote, initialising=True)
            with _as_remote_error(remote):
                return await initialise(context)

        message = anyio.from_thread.run(check)
        if message:
            remote.tell(message)

    def whereis(self, remote: ClusterRemote, key: str) -> str:
        return anyio.from_thread.run(self._ask, remote, _whereis, _key(key))

    def info(self, remote: ClusterRemote) -> dict[str, str]:
        return anyio.from_thread.run(self._ask, remote, _info)

    # Shared code

    async def _ask(self, remote: ClusterRemote, answer: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        """Handle a request that needs a session."""
        context = await self._ready(remote)

        def debug(outgoing: bool, message: Message) -> None:
            remote.annex.debug(one_line(f"P2P {'>' if outgoing else '<'} {describe(message)}"))

        with _as_remote_error(remote):
            async with context.request(debug) as session:
                return await answer(context, session, *arguments)

    async def _ready(self, remote: ClusterRemote, *, initialising: bool = False) -> Context:
        if self._context is None:
            # This asks git-annex, so it needs a thread.
            with _as_remote_error(remote):
                await converse(remote.annex, self._make_context, remote, initialising)
        assert self._context is not None
        return self._context

    def _make_context(self, remote: ClusterRemote, initialising: bool) -> None:
        with remote.shared.asking:
            if self._context is None:
                settings, git_dir = remote.settings(), remote.annex.getgitdir()
                self._context = Context(settings, git_dir, _token(settings, git_dir, initialising))


async def _check_present(context: Context, session: Session, key: Key) -> bool:
    context.causes.take(key)
    return await context.is_present(session, key)


async def _remove(context: Context, session: Session, key: Key) -> None:
    cause = context.causes.take(key)
    if cause is None and is_plain_chunk(key) and context.causes.fsck_fetched_chunks(whole_of(key)):
        # It is unknown which chunk is damaged, and which node sent it.
        cause = Fetched(None)
    await remove(context, session, key, cause)


async def _whereis(context: Context, session: Session, key: Key) -> str:
    if not context.counts_nodes:
        return ""
    return ", ".join(sorted(map(context.name_of, await context.nodes_with(key))))


async def _info(context: Context, session: Session) -> dict[str, str]:
    fields = {
        "cluster": context.cluster_name(),
        "cluster uuid": str(context.server or "that of the repository at the url"),
    }
    if not context.accepted:
        return fields | {"protocol version": "unknown: not asked, because the configuration is not verified"}
    try:
        with anyio.fail_after(min(_INFO_TIMEOUT, context.settings.timeout)):
            uuid = await session.open()
        fields["cluster uuid"] = str(uuid)
        fields["protocol version"] = str(session.version)
    except (SessionError, TimeoutError) as error:
        fields["protocol version"] = one_line(f"unknown: {error or 'the server did not answer in time'}")
    return fields


def _token(settings: Settings, git_dir: str, initialising: bool) -> str | None:
    """Return the remote's own token; during INITREMOTE, the environment's takes precedence."""
    if settings.address is None or not settings.address.wants_token:
        return None
    # Do not ask git-annex: with --debug, it prints its answer.
    repository = Repository.of_remote(git_dir)
    return (given_token() if initialising else None) or stored_token(repository, settings.uuid, settings.address)


def _key(text: str) -> Key:
    try:
        return Key(text)
    except ValueError as error:
        raise RemoteError(one_line(str(error))) from None


@contextmanager
def _as_remote_error(remote: ClusterRemote) -> Iterator[None]:
    """Turn any error into a RemoteError with a message for git-annex."""
    try:
        yield
    except RemoteError as error:
        raise RemoteError(one_line(str(error))) from None
    except CancelledError:
        raise RemoteError("aborted, because git-annex has exited") from None
    except Exception as error:  # noqa: BLE001 -- users should not see a traceback; --debug shows it
        message, expected = message_of(error)
        if any(isinstance(each, AuthenticationFailed) for each in leaf_errors(error)):
            message += f"; set the right one: {remote.settings().new_token_command}"
        if not expected:
            for line in traceback.format_exc().splitlines():
                remote.annex.debug(one_line(line))
        raise RemoteError(one_line(message)) from None


def _progress(remote: ClusterRemote) -> Progress:
    last = 0.0

    def report(position: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_INTERVAL:
            last = now
            remote.annex.progress(position)

    return report
