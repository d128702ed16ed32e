"""What a command line means by NAME or URL: a remote of this repository, or a bare address."""

from __future__ import annotations

import os
import uuid as random_uuids
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.credentials import read_credentials
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Session
from cluster_remote.p2p.stream import Trace
from cluster_remote.remote.identity import wanted_server
from cluster_remote.remote.settings import BadSettings, Settings, token_setting
from cluster_remote.remote.workplace import Workplace
from cluster_remote.transport.address import BadAddress, at_node, parse_address
from cluster_remote.transport.opening import Caller, session_at

__all__ = [
    "Target",
    "annex_repository",
    "looks_like_address",
    "node_named",
    "our_remotes",
    "remote_settings",
    "resolve",
    "stored_token",
]


@dataclass(frozen=True)
class Target:
    """Somebody to talk to.

    `settings` is None for a bare address, `repository` outside of one of git-annex; `descriptions` is what the
    repositories are called here.
    """

    label: str
    session: Session
    settings: Settings | None = None
    repository: Repository | None = None
    descriptions: Mapping[UUID, str] = field(default_factory=dict)


def annex_repository() -> Repository:
    """The repository that the command was started in. Raises NotARepository, NotInitialised."""
    repository = Repository.here()
    # Asked for before anything else, so that what is wrong is not taken for a misspelt name.
    _ = repository.uuid
    return repository


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


def node_named(text: str, config: GitConfig, logs: BranchLogs, cluster: UUID | None = None) -> UUID:
    """The repository that somebody means by its UUID, its description, a remote's name here, or its gateway's name.

    Where several are called so, the nodes of `cluster` come first. Raises BadSettings.
    """
    try:
        return UUID.parse(text)
    except ValueError:
        pass
    found = {uuid for uuid, description in logs.descriptions.items() if description == text}
    found |= {names[text] for names in logs.proxied.values() if text in names}
    own = config.remote(text, "annex-uuid")
    if own:
        found.add(UUID.parse(own))
    if len(found) > 1 and cluster is not None:
        found = found & logs.clusters.nodes(cluster) or found
    if len(found) == 1:
        return found.pop()
    if found:
        raise BadSettings(f"--node {text}: several are called so; give a UUID: {', '.join(sorted(map(str, found)))}")
    known = sorted({name for names in logs.proxied.values() for name, uuid in names.items() if not uuid.is_cluster})
    raise BadSettings(
        f"--node {text}: this repository knows none of that name; "
        + (f"its gateways have {', '.join(known)}" if known else "give its UUID")
    )


async def resolve(
    text: str,
    *,
    timeout: float | None = None,
    trace: Trace | None = None,
    server: UUID | None = None,
    node: str = "",
) -> Target:
    """The remote or address that `text` names, or the one `node` behind it. Nothing is connected yet.

    Raises BadSettings, BadAddress, AnnexError.
    """
    if looks_like_address(text):
        return await _address(text, timeout, trace, server, node)
    repository = Repository.here()
    config = repository.config()
    # Asked for before anything else, so that what is wrong is not taken for a misspelt name.
    _ = repository.uuid
    logs = await BranchLogs.read(repository)
    return await remote_of(text, repository, config, logs, timeout=timeout, trace=trace, server=server, node=node)


async def remote_of(
    text: str,
    repository: Repository,
    config: GitConfig,
    logs: BranchLogs,
    *,
    timeout: float | None = None,
    trace: Trace | None = None,
    server: UUID | None = None,
    node: str = "",
) -> Target:
    """As `resolve`, for the name of a remote, where the repository has been read already."""
    settings = remote_settings(text, config, logs)
    token = stored_token(repository, settings)
    workplace = Workplace(settings, str(repository.git_dir), token, timeout)
    # This repository knows its work tree, which relative paths of remotes are relative to.
    workplace.repository, workplace.config, workplace.logs = repository, config, logs
    if node:
        cluster = wanted_server(settings, logs, config.clusters())
        uuid = node_named(node, config, logs, cluster)
        caller = workplace.caller(trace)
        session: Session
        if settings.address is None:
            session = _own_node(repository, config, logs, cluster, uuid, caller)
        else:
            session = session_at(at_node(settings.address, uuid), caller, server=uuid, token=token)
        return Target(f"{text} ({node})", session, settings, repository, logs.descriptions)
    server = server or wanted_server(workplace.settings, workplace.logs, config.clusters())
    session = await workplace.session_with(server, trace)
    return Target(text, session, settings, repository, logs.descriptions)


def _own_node(
    repository: Repository, config: GitConfig, logs: BranchLogs, cluster: UUID | None, node: UUID, caller: Caller
) -> Session:
    """A session with a node of a cluster whose nodes are remotes of this repository. Raises BadSettings, NoCluster."""
    from cluster_remote.cluster.membership import membership

    place = repository.work_tree or repository.git_dir
    found = membership(config, logs, place, None if cluster is None else cluster.text)
    nodes = found.nodes(caller)
    for each in nodes:
        if each.uuid == node:
            return each.session()
    raise BadSettings(
        f"{logs.descriptions.get(node, node.text)} is no node of the cluster {found.name} of this repository; its "
        f"nodes are {', '.join(each.name for each in nodes)}"
    )


def stored_token(repository: Repository, settings: Settings) -> str | None:
    """The token for a remote's gateway, from the environment or as git-annex keeps it. Raises CredentialsUnreadable."""
    given = os.environ.get("CLUSTER_REMOTE_TOKEN")
    if not settings.wants_token or given:
        return given
    assert settings.address is not None
    stored = read_credentials(repository, settings.uuid, token_setting(settings.address))
    return stored[1] if stored else None


async def _address(text: str, timeout: float | None, trace: Trace | None, server: UUID | None, node: str) -> Target:
    try:
        address = parse_address(text)
    except BadAddress as error:
        raise BadSettings(str(error)) from None
    repository: Repository | None
    try:
        repository = Repository.here()
        config = repository.config()
        caller = Caller(
            repository.uuid, ssh_command=config.get("core.sshCommand"), ssh_variant=config.get("ssh.variant")
        )
    except AnnexError:
        # An address can be tried from anywhere; the server only wants to be told some UUID.
        repository, config = None, GitConfig.parse(b"")
        caller = Caller(UUID.parse(str(random_uuids.uuid4())))
    logs = BranchLogs({}) if repository is None else await BranchLogs.read(repository)
    if node:
        server = node_named(node, config, logs)
        address = at_node(address, server)
    caller = Caller(caller.uuid, timeout or caller.timeout, caller.ssh_command, caller.ssh_variant, trace)
    token = os.environ.get("CLUSTER_REMOTE_TOKEN")
    label = f"{text} ({node})" if node else text
    session = session_at(address, caller, server=server, token=token)
    return Target(label, session, None, repository, logs.descriptions)
