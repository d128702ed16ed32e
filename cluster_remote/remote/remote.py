"""Implement the special remote, which answers git-annex's requests with a session of any kind.

Without a url, that is the cluster of this repository. Every request has a session to itself, records locations before
it reports success, and turns a failure into a one-line message.
"""

from __future__ import annotations

import threading

from annexremote import RemoteError, SpecialRemote

from cluster_remote.annex.errors import AnnexError
from cluster_remote.p2p import MAX_VERSION
from cluster_remote.remote.protocol import AnnexMaster, Questions, one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster_remote.access.settings import Settings
    from cluster_remote.p2p.key import UUID
    from cluster_remote.remote.requests import Requests

__all__ = ["ClusterRemote", "Shared"]


class Shared:
    """The state that all jobs of one process share."""

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.requests: Requests
        """The handler of requests that need a session; set when the event loop starts."""
        self.questions = Questions()
        # Held while asking git-annex for settings that all jobs need.
        self.asking = threading.RLock()
        # Messages that the user has seen in this run.
        self.told: set[str] = set()


class ClusterRemote(SpecialRemote):  # type: ignore[misc] # annexremote has no types
    """The remote as one job sees it. Handles one request at a time."""

    def __init__(self, annex: AnnexMaster, shared: Shared) -> None:
        # Skip the parent's constructor, which sets `info` to a fixed value; here it is a property.
        self.annex = annex
        self.shared = shared
        self._clusters: Mapping[str, UUID] | None = None
        self._initialising = False

    # Requests that need no connection

    def listconfigs(self) -> dict[str, str]:
        from cluster_remote.access.settings import DESCRIPTIONS

        return DESCRIPTIONS

    def prepare(self) -> None:
        self.settings()

    def getcost(self) -> int:
        return self.settings().cost

    def getavailability(self) -> str:
        settings = self.settings()
        if settings.address is not None and not settings.address.local:
            return "global"
        if "UNAVAILABLERESPONSE" in self.annex.protocol.extensions:
            from cluster_remote.remote.availability import is_away

            try:
                if is_away(settings.address, self.annex.getgitdir(), settings.uuid, settings.name):
                    return "unavailable"
            except AnnexError as error:
                raise RemoteError(one_line(str(error))) from None
        return "local"

    # Requests that need a session

    def initremote(self) -> None:
        self._initialising = True
        self.shared.requests.initialise(self)

    async def transfer_store(self, key: str, local_file: str) -> None:
        await self.shared.requests.store(self, key, _path(local_file))

    async def transfer_retrieve(self, key: str, local_file: str) -> None:
        await self.shared.requests.retrieve(self, key, _path(local_file))

    async def checkpresent(self, key: str) -> bool:
        return await self.shared.requests.check_present(self, key)

    async def remove(self, key: str) -> None:
        await self.shared.requests.remove(self, key)

    def whereis(self, key: str) -> str:
        # Neither this nor `info` can report a failure without ending the program.
        try:
            where = self.shared.requests.whereis(self, key)
        except RemoteError as error:
            self.tell(str(error))
            return ""
        return one_line(where) if where else ""

    @property
    def info(self) -> dict[str, str]:
        return {name: one_line(value) for name, value in self._info_fields().items()}

    def _info_fields(self) -> dict[str, str]:
        settings = self.settings()
        fields = {"url": settings.url or "none: the cluster of this repository", "tracking": settings.tracking}
        own = self._own_cluster_name()
        if own is not None:
            return fields | {
                "cluster": own,
                "cluster uuid": settings.uuid.text,
                "protocol version": str(MAX_VERSION),
            }
        try:
            found = self.shared.requests.info(self)
        except RemoteError as error:
            found = {"protocol version": f"unknown: {error}"}
        return fields | found

    def info_needs_sessions(self) -> bool:
        """Return whether `info` requires a session; not for a cluster of this repository."""
        return self._own_cluster_name() is None

    def _own_cluster_name(self) -> str | None:
        """Return the name of the remote's cluster if it is a cluster of this repository; otherwise None."""
        settings = self.settings()
        if settings.address is not None or settings.tracking != "nodes":
            return None
        if self._clusters is None:
            from cluster_remote.annex.gitconfig import GitConfig

            try:
                self._clusters = GitConfig.of_git_dir(self.annex.getgitdir()).clusters()
            except AnnexError as error:
                raise RemoteError(one_line(str(error))) from None
        return next((name for name, uuid in self._clusters.items() if uuid == settings.uuid), None)

    # Shared code

    def settings(self) -> Settings:
        """Return the remote's parameters, asking git-annex once. Raises RemoteError."""
        with self.shared.asking:
            if self.shared.settings is None:
                from cluster_remote.access.settings import BadSettings, Settings

                try:
                    settings = Settings.read(self.annex.getconfig, self.annex.getuuid(), self._remote_name())
                except (BadSettings, ValueError) as error:
                    raise RemoteError(one_line(str(error))) from None
                self.shared.settings = settings
            return self.shared.settings

    def _remote_name(self) -> str:
        if self._initialising:
            # Before 10.20260115, GETGITREMOTENAME makes git-annex exit here; the configuration has the name.
            name = self.annex.getconfig("sameas-name") or self.annex.getconfig("name")
            if name:
                return str(name)
        if "GETGITREMOTENAME" in self.annex.protocol.extensions:
            try:
                return str(self.annex.getgitremotename())
            except RemoteError:
                # Before 10.20260115, git-annex replies with ERROR during INITREMOTE; the parameters have the name then.
                return ""
        return ""

    def tell(self, text: str) -> None:
        """Show a message to the user, once per run: an unplugged disk must not be reported for every file."""
        if text in self.shared.told:
            self.annex.debug(one_line(text))
            return
        self.shared.told.add(text)
        if "INFO" in self.annex.protocol.extensions:
            self.annex.info(one_line(text))
        else:
            self.annex.debug(one_line(text))


def _path(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
