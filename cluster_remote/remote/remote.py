"""The special remote: git-annex's requests, answered by one session.

It does not know what kind of session it holds; without a url it is the cluster of this very repository. What every
request has in common: it has a session to itself, it records before it reports success, and every way to fail ends in
one line of words.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager

from annexremote import RemoteError, SpecialRemote

from cluster_remote.remote.protocol import AnnexMaster, Questions, one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping
    from typing import Any, TypeVar

    from cluster_remote.access.settings import Settings
    from cluster_remote.p2p.key import UUID, Key
    from cluster_remote.p2p.messages import Message
    from cluster_remote.p2p.session import Session
    from cluster_remote.remote.context import Context

    T = TypeVar("T")

__all__ = ["ClusterRemote"]

# Seconds between two PROGRESS messages; git-annex shows a few a second.
_PROGRESS_INTERVAL = 0.2
# Seconds that git annex info waits for the server at most.
_INFO_TIMEOUT = 10.0


class Shared:
    """What all jobs of one process share."""

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.context: Context | None = None
        self.questions = Questions()
        # Held while git-annex is asked for what all of them need.
        self.asking = threading.RLock()
        # What the user has been told in this run.
        self.told: set[str] = set()

    def abandon(self) -> None:
        """Cancels the requests that are under way."""
        if self.context is not None:
            self.context.cancel_requests()

    async def aclose(self) -> None:
        """Closes the connections. What has been recorded is committed by git-annex at the latest then."""
        if self.context is not None:
            await self.context.aclose()
            self.context = None


class ClusterRemote(SpecialRemote):  # type: ignore[misc] # annexremote has no types
    """One remote of one repository. Requests come one after the other; for more at once there are more of these."""

    def __init__(self, annex: AnnexMaster, shared: Shared) -> None:
        # Not by way of the parent class, which makes `info` a value; here it is asked for anew each time.
        self.annex = annex
        self._shared = shared
        self._clusters: Mapping[str, UUID] | None = None
        self._initialising = False

    # What git-annex asks without a reason to connect

    def listconfigs(self) -> dict[str, str]:
        from cluster_remote.access.settings import DESCRIPTIONS

        return DESCRIPTIONS

    def prepare(self) -> None:
        self._read_settings()

    def getcost(self) -> int:
        return self._read_settings().cost

    def getavailability(self) -> str:
        address = self._read_settings().address
        if address is not None and not address.local:
            return "global"
        if "UNAVAILABLERESPONSE" in self.annex.protocol.extensions:
            from cluster_remote.annex.errors import AnnexError
            from cluster_remote.remote.availability import is_away

            try:
                if is_away(address, self.annex.getgitdir(), self._read_settings().uuid):
                    return "unavailable"
            except AnnexError as error:
                raise RemoteError(one_line(str(error))) from None
        return "local"

    # Requests

    def initremote(self) -> None:
        from cluster_remote.remote.initremote import initialise, refuse_embedding

        self._initialising = True
        with self._in_words():
            refuse_embedding(self.annex.getconfig("embedcreds"))

        async def check() -> str:
            context = await self._context(initialising=True)
            with self._in_words():
                return await initialise(context)

        words = self._wait_for(check)
        if words:
            self._tell(words)

    async def transfer_store(self, key: str, local_file: str) -> None:
        await self._ask(self._store, self._key(key), _path(local_file))

    async def transfer_retrieve(self, key: str, local_file: str) -> None:
        await self._ask(self._retrieve, self._key(key), _path(local_file))

    async def checkpresent(self, key: str) -> bool:
        return await self._ask(self._check_present, self._key(key))

    async def remove(self, key: str) -> None:
        await self._ask(self._remove, self._key(key))

    def whereis(self, key: str) -> str:
        # Both this and info have no way to fail but to end the program.
        try:
            where: str = self._wait_for(self._ask, self._whereis, self._key(key))
        except RemoteError as error:
            self._tell(str(error))
            return ""
        return one_line(where) if where else ""

    @property
    def info(self) -> dict[str, str]:
        return {name: one_line(value) for name, value in self._fields_of_info().items()}

    def _fields_of_info(self) -> dict[str, str]:
        settings = self._read_settings()
        fields = {"url": settings.url or "none: the cluster of this repository", "tracking": settings.tracking}
        own = self._own_cluster_name()
        if own is not None:
            from cluster_remote.p2p import MAX_VERSION

            return fields | {
                "cluster": own,
                "cluster uuid": settings.uuid.text,
                "protocol version": str(MAX_VERSION),
            }
        try:
            found: dict[str, str] = self._wait_for(self._ask, self._info)
        except RemoteError as error:
            found = {"protocol version": f"unknown: {error}"}
        return fields | found

    def info_needs_sessions(self) -> bool:
        """Whether nothing is known of the remote without asking; the cluster of this very repository is known."""
        return self._own_cluster_name() is None

    def _own_cluster_name(self) -> str | None:
        """What the remote's cluster is called here, where it is one of this very repository."""
        settings = self._read_settings()
        if settings.address is not None or settings.tracking != "nodes":
            return None
        if self._clusters is None:
            from cluster_remote.annex.errors import AnnexError
            from cluster_remote.annex.gitconfig import GitConfig

            try:
                self._clusters = GitConfig.read(env={**os.environ, "GIT_DIR": self.annex.getgitdir()}).clusters()
            except AnnexError as error:
                raise RemoteError(one_line(str(error))) from None
        return next((name for name, uuid in self._clusters.items() if uuid == settings.uuid), None)

    # How they are answered

    async def _store(self, context: Context, session: Session, key: Key, path: bytes) -> None:
        from cluster_remote.remote.storing import store

        context.causes.take(key)
        await store(context, session, key, path, self._progress(), self._tell)

    async def _retrieve(self, context: Context, session: Session, key: Key, path: bytes) -> None:
        from cluster_remote.remote.causes import Fetched, is_for_fsck

        context.causes.take(key)
        if not is_for_fsck(path):
            await context.fetch(session, key, path, self._progress(), self._tell)
            return
        origin = await context.fetch_from_one(session, key, path, self._progress())
        context.causes.remember(key, Fetched(origin))

    async def _check_present(self, context: Context, session: Session, key: Key) -> bool:
        from cluster_remote.remote.chunks import stored_as

        context.causes.take(key)
        return await session.check_present(stored_as(key))

    async def _remove(self, context: Context, session: Session, key: Key) -> None:
        from cluster_remote.remote.removal import remove

        await remove(context, session, key, context.causes.take(key))

    async def _whereis(self, context: Context, session: Session, key: Key) -> str:
        if not context.counts_nodes:
            return ""
        return ", ".join(sorted(map(context.name_of, await context.nodes_with(key))))

    async def _info(self, context: Context, session: Session) -> dict[str, str]:
        import anyio

        from cluster_remote.p2p.errors import SessionError

        fields = {
            "cluster": context.cluster_name(),
            "cluster uuid": str(context.server or "that of the repository at the url"),
        }
        if not context.accepted:
            return fields | {"protocol version": "unknown: not asked, for its configuration is not verified"}
        try:
            with anyio.fail_after(min(_INFO_TIMEOUT, context.settings.timeout)):
                uuid = await session.open()
            fields["cluster uuid"] = str(uuid)
            fields["protocol version"] = str(session.version)
        except (SessionError, TimeoutError) as error:
            fields["protocol version"] = one_line(f"unknown: {error or 'the server did not answer in time'}")
        return fields

    # What they share

    def _read_settings(self) -> Settings:
        with self._shared.asking:
            if self._shared.settings is None:
                from cluster_remote.access.settings import BadSettings, Settings

                try:
                    settings = Settings.read(self.annex.getconfig, self.annex.getuuid(), self._remote_name())
                except (BadSettings, ValueError) as error:
                    raise RemoteError(one_line(str(error))) from None
                self._shared.settings = settings
            return self._shared.settings

    def _remote_name(self) -> str:
        if self._initialising:
            # Before 10.20260115 git-annex ends on GETGITREMOTENAME here; the configuration has the name.
            name = self.annex.getconfig("sameas-name") or self.annex.getconfig("name")
            if name:
                return str(name)
        if "GETGITREMOTENAME" in self.annex.protocol.extensions:
            try:
                return str(self.annex.getgitremotename())
            except RemoteError:
                # Before 10.20260115 git-annex answers with ERROR during INITREMOTE; the parameters have the name then.
                return ""
        return ""

    def _get_context(self, initialising: bool) -> Context:
        with self._shared.asking:
            if self._shared.context is None:
                from cluster_remote.remote.context import Context

                settings = self._read_settings()
                self._shared.context = Context(settings, self.annex.getgitdir(), self._token(settings, initialising))
            return self._shared.context

    def _token(self, settings: Settings, initialising: bool) -> str | None:
        """The remote's own token; the one of the environment only when it is made, or given another."""
        if settings.address is None or not settings.address.wants_token:
            return None
        from cluster_remote.access.tokens import given_token, stored_token
        from cluster_remote.annex.repository import Repository

        # git-annex is not asked: with --debug, all that it says is printed.
        repository = Repository.of_remote(self.annex.getgitdir())
        return (given_token() if initialising else None) or stored_token(repository, settings.uuid, settings.address)

    def _key(self, text: str) -> Key:
        from cluster_remote.p2p.key import Key

        try:
            return Key.parse(text)
        except ValueError as error:
            raise RemoteError(one_line(str(error))) from None

    async def _ask(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        """Answers a request that needs a session."""
        context = await self._context()
        with self._in_words():
            async with context.request(self._debug) as session:
                return await function(context, session, *arguments)

    async def _context(self, *, initialising: bool = False) -> Context:
        if self._shared.context is None:
            # git-annex is asked, which takes a thread.
            with self._in_words():
                await self.annex.converse(self._get_context, initialising)
        assert self._shared.context is not None
        return self._shared.context

    def _wait_for(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        """Has the event loop answer a request whose thread waits."""
        from anyio.from_thread import run

        outcome: T = run(function, *arguments)
        return outcome

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Whatever goes wrong becomes words for git-annex."""
        from concurrent.futures import CancelledError

        from cluster_remote.p2p.errors import AuthenticationFailed
        from cluster_remote.remote.failure import causes, in_words

        try:
            yield
        except RemoteError as error:
            raise RemoteError(one_line(str(error))) from None
        except CancelledError:
            raise RemoteError("given up, because git-annex is gone") from None
        except Exception as error:  # noqa: BLE001 -- a user is never shown a traceback; --debug shows it
            words, expected = in_words(error)
            if any(isinstance(cause, AuthenticationFailed) for cause in causes(error)):
                words += f"; give the right one: {self._read_settings().new_token_command}"
            if not expected:
                import traceback

                for line in traceback.format_exc().splitlines():
                    self.annex.debug(one_line(line))
            raise RemoteError(one_line(words)) from None

    def _progress(self) -> Callable[[int], None]:
        last = 0.0

        def report(position: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _PROGRESS_INTERVAL:
                last = now
                self.annex.progress(position)

        return report

    def _tell(self, text: str) -> None:
        """Tell the user something, once in a run: an unplugged disk is not news for every file."""
        if text in self._shared.told:
            self.annex.debug(one_line(text))
            return
        self._shared.told.add(text)
        if "INFO" in self.annex.protocol.extensions:
            self.annex.info(one_line(text))
        else:
            self.annex.debug(one_line(text))

    def _debug(self, outgoing: bool, message: Message) -> None:
        from cluster_remote.p2p.messages import describe

        self.annex.debug(one_line(f"P2P {'>' if outgoing else '<'} {describe(message)}"))


def _path(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
