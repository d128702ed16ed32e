"""Read the repository that a command runs in, once, and resolve names and addresses there."""

from __future__ import annotations

import uuid as random_uuids
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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
from cluster_remote.cluster.opening import cluster_of, resolved
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.timeouts import DEFAULT_TIMEOUT
from cluster_remote.transport.address import Address, BadAddress, at_node, parse_address
from cluster_remote.transport.opening import Caller

__all__ = ["LocalRepository", "looks_like_address", "way_of"]

_ALLOWED_IPS = "annex.security.allowed-ip-addresses"


def looks_like_address(text: str) -> bool:
    """Return whether a word is an address rather than a remote's name, which cannot contain these characters."""
    return "/" in text or ":" in text


def way_of(
    settings: Settings, caller: Caller, config: GitConfig, logs: BranchLogs, token: str | None, *, shared: bool
) -> Way:
    """Return the way to a remote's cluster. `shared`: whether its url is in the git-annex branch. Raises NoCluster.

    Decides whether to use a gateway, and which IP addresses may be connected to.
    """
    if settings.address is None:
        assert caller.repository is not None
        wanted = settings.cluster or (settings.uuid.text if settings.uuid.is_cluster else None)
        return Serverless(cluster_of(caller.repository, config, logs, wanted), caller, logs)
    caller = replace(caller, ssh_options=config.ssh_options(settings.name))
    if shared:
        # Like git-annex: settings that others can change must not make us connect to hosts only this machine can reach.
        caller = caller.restricted_to(config.get(_ALLOWED_IPS) or "")
    return ThroughGateway(settings.address, caller, token, config, logs, by_address=settings.sameas)


@dataclass(frozen=True)
class LocalRepository:
    """A snapshot of the local repository, empty outside of one.

    `uuid` is the repository's, or a random one outside of a repository. `verified` are the special remote
    configurations that the user has accepted; None if git-annex is too old to verify them.
    """

    uuid: UUID
    repository: Repository | None
    config: GitConfig = field(repr=False)
    logs: BranchLogs = field(repr=False)
    verified: Mapping[UUID, Mapping[str, str]] | None = field(repr=False)

    @classmethod
    async def here(cls, *, merge: bool = False) -> LocalRepository:
        """Read the repository that this was started in. `merge`: include fetched git-annex branches.

        Raises NotARepository, NotInitialised, CommandFailed, BranchUnreadable.
        """
        repository = await Repository.find()
        # Check this first: git annex would initialise any git repository that it runs in.
        uuid = await repository.find_uuid()
        if merge:
            await refresh(repository)
        config = await resolved(await repository.current_config(), repository)
        return cls(uuid, repository, config, await BranchLogs.read(repository), verified(repository))

    @classmethod
    async def anywhere(cls, *, merge: bool = False) -> LocalRepository:
        """Return the same, but also work outside of a repository, to try an address. Raises CommandFailed."""
        try:
            return await cls.here(merge=merge)
        except (NotARepository, NotInitialised):
            # The server accepts any UUID.
            random = UUID(str(random_uuids.uuid4()))
            return cls(random, None, GitConfig.parse(b""), BranchLogs({}), None)

    def _caller(self, timeout: float | None) -> Caller:
        if self.repository is None:
            return Caller(self.uuid, timeout or DEFAULT_TIMEOUT)
        return Caller.of(self.repository, self.config, timeout or DEFAULT_TIMEOUT)

    def configuration(self, name: str) -> Configuration:
        """Return the configuration of one of our remotes, accepted or not. Raises BadSettings."""
        return Configuration.of(name, self.config, self.logs, self.verified)

    def remote(self, name: str, timeout: float | None = None) -> View:
        """Return one of our remotes. Raises NotVerified, BadSettings, CredentialsUnreadable, serverless NoCluster."""
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
        """Return the names of all our remotes."""
        return our_remotes(self.config)

    def address(self, url: str, timeout: float | None = None, node: str = "") -> View:
        """Return a view of an address given by the user, with the token from the environment. Raises BadSettings."""
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
        """Return views of the clusters behind an address that are known here, or else of the repository itself.

        Asks the server for its identity. Raises BadSettings, SessionError, AnnexError.
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
