"""What a command line means by NAME or URL: a remote of this repository, or a bare address."""

from __future__ import annotations

import os
import uuid as random_uuids
from dataclasses import dataclass

from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.credentials import read_credentials
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.repository import GitConfig, Repository
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Session
from cluster_remote.p2p.stream import Trace
from cluster_remote.remote.identity import wanted_server
from cluster_remote.remote.settings import BadSettings, Settings, token_setting
from cluster_remote.remote.workplace import Workplace
from cluster_remote.transport.address import BadAddress, parse_address
from cluster_remote.transport.opening import Caller, session_at

__all__ = ["Target", "looks_like_address", "our_remotes", "remote_settings", "resolve"]


@dataclass(frozen=True)
class Target:
    """Somebody to talk to. `settings` is None for a bare address."""

    label: str
    session: Session
    settings: Settings | None = None


def looks_like_address(text: str) -> bool:
    """Whether a word is an address rather than the name of a remote, which holds neither of these."""
    return "/" in text or ":" in text


def our_remotes(config: GitConfig) -> list[str]:
    """The remotes of this repository that are served by this program."""
    return [name for name in config.remotes() if config.remote(name, "annex-externaltype") == "cluster"]


def remote_settings(name: str, config: GitConfig, logs: BranchLogs) -> Settings:
    """The parameters of a remote of this repository. Raises BadSettings."""
    if name not in our_remotes(config):
        known = ", ".join(our_remotes(config))
        raise BadSettings(
            f"{name!r} is not a cluster remote of this repository"
            + (f"; there is {known}" if known else "; there is none yet (cluster-remote setup makes one)")
            + ". An address has a slash or a colon in it"
        )
    uuid = config.remote(name, "annex-uuid") or ""
    config_uuid = config.remote(name, "annex-config-uuid") or uuid
    parameters = logs.remotes.get(UUID.parse(config_uuid), {})
    return Settings.read(lambda setting: parameters.get(setting, ""), uuid, name)


async def resolve(
    text: str, *, timeout: float | None = None, trace: Trace | None = None, server: UUID | None = None
) -> Target:
    """The remote or address that `text` names. Nothing is connected yet.

    Raises BadSettings, BadAddress, AnnexError.
    """
    if looks_like_address(text):
        return await _address(text, timeout, trace, server)
    repository = Repository.here()
    config = repository.config()
    logs = await BranchLogs.read(repository)
    settings = remote_settings(text, config, logs)
    token = _stored_token(repository, settings)
    workplace = Workplace(settings, str(repository.git_dir), token, timeout)
    await workplace.read_repository()
    server = server or wanted_server(workplace.settings, workplace.logs, config.clusters())
    return Target(text, await workplace.session_with(server, trace), settings)


def _stored_token(repository: Repository, settings: Settings) -> str | None:
    given = os.environ.get("CLUSTER_REMOTE_TOKEN")
    if not settings.wants_token or given:
        return given
    assert settings.address is not None
    stored = read_credentials(repository, settings.uuid, token_setting(settings.address))
    return stored[1] if stored else None


async def _address(text: str, timeout: float | None, trace: Trace | None, server: UUID | None) -> Target:
    try:
        address = parse_address(text)
    except BadAddress as error:
        raise BadSettings(str(error)) from None
    try:
        repository = Repository.here()
        config = repository.config()
        caller = Caller(
            repository.uuid, ssh_command=config.get("core.sshCommand"), ssh_variant=config.get("ssh.variant")
        )
    except AnnexError:
        # An address can be tried from anywhere; the server only wants to be told some UUID.
        caller = Caller(UUID.parse(str(random_uuids.uuid4())))
    caller = Caller(caller.uuid, timeout or caller.timeout, caller.ssh_command, caller.ssh_variant, trace)
    token = os.environ.get("CLUSTER_REMOTE_TOKEN")
    return Target(text, session_at(address, caller, server=server, token=token))
