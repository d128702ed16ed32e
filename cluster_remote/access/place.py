"""The place that a command is started in: its repository, read once, and what can be named there."""

from __future__ import annotations

import uuid as random_uuids
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster_remote.access.configuration import Configuration, our_remotes
from cluster_remote.access.identity import candidates, node_named, wanted_server
from cluster_remote.access.settings import BadSettings, Settings
from cluster_remote.access.tokens import given_token, stored_token
from cluster_remote.access.view import View
from cluster_remote.access.ways import Serverless, ThroughGateway, Way
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.errors import NotARepository, NotInitialised
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.merge import refresh
from cluster_remote.annex.repository import Repository
from cluster_remote.annex.verification import verified
from cluster_remote.cluster.opening import resolved
from cluster_remote.p2p.client import DEFAULT_TIMEOUT
from cluster_remote.p2p.key import UUID
from cluster_remote.transport.address import Address, BadAddress, at_node, parse_address
from cluster_remote.transport.opening import Caller
from cluster_remote.transport.tls import TlsSettings

if TYPE_CHECKING:
    pass

__all__ = ["Place", "caller_of", "looks_like_address", "way_of"]

_ALLOWED_IPS = "annex.security.allowed-ip-addresses"


def looks_like_address(text: str) -> bool:
    """Whether a word is an address rather than the name of a remote, which holds neither of these."""
    return "/" in text or ":" in text


def caller_of(repository: Repository, config: GitConfig, timeout: float = DEFAULT_TIMEOUT) -> Caller:
    """Who opens sessions from a repository. Raises NotInitialised."""
    return Caller(
        repository.uuid,
        timeout,
        ssh_command=config.get("core.sshCommand"),
        ssh_variant=config.get("ssh.variant"),
        repository=repository,
        tls=TlsSettings.of(config),
        http_proxy=config.get("http.proxy"),
    )


def way_of(
    settings: Settings, caller: Caller, config: GitConfig, logs: BranchLogs, token: str | None, *, shared: bool
) -> Way:
    """The way to a remote's cluster. `shared`: whether its url is in the git-annex branch. Raises NoCluster.

    This is where it is decided whether there is a server, and which addresses of the network may be connected to.
    """
    if settings.address is None:
        from cluster_remote.cluster.membership import membership

        assert caller.repository is not None
        wanted = settings.cluster or (settings.uuid.text if settings.uuid.is_cluster else None)
        return Serverless(membership(config, logs, caller.repository.place, wanted), caller, logs)
    if shared:
        # What others can change must not make this machine connect to what only it can reach, as git-annex has it.
        caller = caller.restricted_to(config.get(_ALLOWED_IPS) or "")
    return ThroughGateway(settings.address, caller, token, config, logs, by_address=settings.sameas)


@dataclass(frozen=True)
class Place:
    """What was read of the repository here, at one moment; outside of one there is nothing to read.

    `uuid` is who asks. `verified` are the configurations of special remotes that this user has accepted; None where
    git-annex is too old to ask.
    """

    uuid: UUID
    repository: Repository | None
    config: GitConfig = field(repr=False)
    logs: BranchLogs = field(repr=False)
    verified: Mapping[UUID, Mapping[str, str]] | None = field(repr=False)

    @classmethod
    async def here(cls, *, merge: bool = False) -> Place:
        """The repository that this was started in. `merge`: with what was fetched of others' git-annex branches.

        Raises NotARepository, NotInitialised, CommandFailed, BranchUnreadable.
        """
        repository = Repository.here()
        # Asked for before anything else: git annex would make a repository of its own out of any.
        uuid = repository.uuid
        if merge:
            await refresh(repository)
        config = await resolved(repository.config(), repository)
        return cls(uuid, repository, config, await BranchLogs.read(repository), verified(repository))

    @classmethod
    async def anywhere(cls, *, merge: bool = False) -> Place:
        """The same; an address can be tried from outside of a repository too. Raises CommandFailed."""
        try:
            return await cls.here(merge=merge)
        except (NotARepository, NotInitialised):
            # The server only wants to be told some UUID.
            nobody = UUID.parse(str(random_uuids.uuid4()))
            return cls(nobody, None, GitConfig.parse(b""), BranchLogs({}), None)

    def _caller(self, timeout: float | None) -> Caller:
        if self.repository is None:
            return Caller(self.uuid, timeout or DEFAULT_TIMEOUT)
        return caller_of(self.repository, self.config, timeout or DEFAULT_TIMEOUT)

    def configuration(self, name: str) -> Configuration:
        """The configuration of a remote of ours, accepted or not. Raises BadSettings."""
        return Configuration.of(name, self.config, self.logs, self.verified)

    def remote(self, name: str, timeout: float | None = None) -> View:
        """A remote of ours. Raises NotVerified, BadSettings, CredentialsUnreadable; without a server NoCluster."""
        configuration = self.configuration(name)
        configuration.check_accepted()
        settings = configuration.settings
        assert self.repository is not None
        token = None
        if settings.address is not None and settings.address.wants_token:
            token = stored_token(self.repository, settings.uuid, settings.address)
        caller = self._caller(timeout or settings.timeout)
        way = way_of(settings, caller, self.config, self.logs, token, shared=configuration.shared)
        server = wanted_server(settings, self.logs, self.config.clusters())
        return View(name, self.repository, self.config, self.logs, settings, settings.uuid, server, way)

    def remotes(self) -> list[str]:
        """The names of all remotes of ours."""
        return our_remotes(self.config)

    def address(self, url: str, timeout: float | None = None, node: str = "") -> View:
        """An address that this user has given, with the token of the environment. Raises BadSettings."""
        try:
            address = parse_address(url)
        except BadAddress as error:
            raise BadSettings(str(error)) from None
        server = node_named(node, self.config, self.logs) if node else None
        return self._at(address if server is None else at_node(address, server), url, server, timeout)

    def _at(self, address: Address, label: str, server: UUID | None, timeout: float | None) -> View:
        way = ThroughGateway(address, self._caller(timeout), given_token(), self.config, self.logs, by_address=True)
        return View(label, self.repository, self.config, self.logs, None, server, server, way)

    async def answering_at(self, url: str, timeout: float | None = None) -> list[View]:
        """What answers at an address: each of its clusters that is known here, or the repository itself.

        Asks the server who it is. Raises BadSettings, SessionError, AnnexError.
        """
        view = self.address(url, timeout)
        session = view.session()
        try:
            server = await session.open()
        finally:
            await session.aclose()
        way = view.way
        assert isinstance(way, ThroughGateway)
        return [
            self._at(way.address, str(way.address), uuid, timeout)
            for uuid in ([server] if server.is_cluster else candidates(server, self.logs))
        ]
