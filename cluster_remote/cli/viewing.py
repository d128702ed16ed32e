"""What a command line means by NAME or URL, for commands that look at the nodes one by one."""

from __future__ import annotations

import os
import uuid as random_uuids
from dataclasses import replace
from typing import TYPE_CHECKING

from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.errors import AnnexError, NotARepository, NotInitialised
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.merge import refresh
from cluster_remote.annex.repository import Repository
from cluster_remote.cli.target import looks_like_address, our_remotes, remote_settings, stored_token
from cluster_remote.diagnosis.nodes import Unusable, View, at_address, of_remote
from cluster_remote.p2p.key import UUID
from cluster_remote.remote.settings import BadSettings
from cluster_remote.transport.address import BadAddress, parse_address
from cluster_remote.transport.opening import Caller

if TYPE_CHECKING:
    from cluster_remote.remote.settings import Settings

__all__ = ["every_view", "view_of", "views_at"]


async def every_view(timeout: float | None) -> tuple[list[View], list[Unusable]]:
    """All cluster remotes of this repository, without the remotes that lead to one node of another of them.

    Raises BadSettings where there is none, AnnexError.
    """
    repository = Repository.here()
    config = repository.config()
    logs = await _merged_logs(repository)
    names = our_remotes(config)
    if not names:
        raise BadSettings("this repository has no cluster remote yet; cluster-remote setup NAME URL makes one")
    views: list[View] = []
    unusable: list[Unusable] = []
    for name in names:
        try:
            views.append(_remote(name, repository, config, logs, timeout))
        except (BadSettings, AnnexError) as error:
            # The others are to be seen all the same.
            uuid = UUID.parse(config.remote(name, "annex-uuid") or "")
            unusable.append(Unusable(name, uuid, logs.descriptions.get(uuid, ""), str(error)))
    nodes = {uuid for view in views if view.uuid.is_cluster for uuid in view.uuids}
    return [view for view in views if view.uuid not in nodes], unusable


async def view_of(name: str, timeout: float | None = None) -> View:
    """A remote of this repository. Raises BadSettings, AnnexError."""
    if looks_like_address(name):
        raise BadSettings(
            f"{name}: this needs a remote of this repository, whose location log can be compared; "
            f"cluster-remote setup NAME {name} makes one"
        )
    repository = Repository.here()
    return _remote(name, repository, repository.config(), await _merged_logs(repository), timeout)


def _remote(name: str, repository: Repository, config: GitConfig, logs: BranchLogs, timeout: float | None) -> View:
    caller = Caller(repository.uuid, ssh_command=config.get("core.sshCommand"), ssh_variant=config.get("ssh.variant"))
    settings: Settings = remote_settings(name, config, logs)
    token = stored_token(repository, settings)
    caller = replace(caller, timeout=timeout or settings.timeout)
    try:
        return of_remote(name, settings, repository, config, logs, caller, token)
    except BadAddress as error:
        raise BadSettings(f"{name}: {error}") from None


async def _merged_logs(repository: Repository) -> BranchLogs:
    # Raises NotInitialised, where refresh would make a repository of git-annex out of this one.
    _ = repository.uuid
    await refresh(repository)
    return await BranchLogs.read(repository)


async def views_at(url: str, timeout: float | None) -> list[View]:
    """What answers at an address, as seen from this repository if this is one.

    Raises BadSettings, SessionError, AnnexError.
    """
    try:
        address = parse_address(url)
    except BadAddress as error:
        raise BadSettings(str(error)) from None
    repository: Repository | None
    try:
        repository = Repository.here()
        config = repository.config()
        caller = Caller(
            repository.uuid, ssh_command=config.get("core.sshCommand"), ssh_variant=config.get("ssh.variant")
        )
        logs = await _merged_logs(repository)
    except (NotARepository, NotInitialised):
        # An address can be tried from anywhere; the server only wants to be told some UUID.
        repository, config, logs = None, GitConfig.parse(b""), BranchLogs({})
        caller = Caller(UUID.parse(str(random_uuids.uuid4())))
    caller = replace(caller, timeout=timeout or caller.timeout)
    try:
        return await at_address(address, repository, config, logs, caller, os.environ.get("CLUSTER_REMOTE_TOKEN"))
    except BadAddress as error:
        raise BadSettings(str(error)) from None
