"""Gather the facts that show problems: configuration, logs, files and servers' answers."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from cluster_remote.access.configuration import as_used
from cluster_remote.access.settings import BadSettings, Settings
from cluster_remote.annex import child, logformat
from cluster_remote.annex.branchlog import BRANCH, BranchLogs
from cluster_remote.annex.catfile import read_blobs
from cluster_remote.annex.credentials import permissions_ok
from cluster_remote.annex.errors import AnnexError, CommandFailed
from cluster_remote.annex.merge import refresh
from cluster_remote.annex.verification import pending, verified
from cluster_remote.diagnosis.checkup import Server
from cluster_remote.diagnosis.probe import ABSENT_KEY
from cluster_remote.diagnosis.snapshot import Branch, RemoteFacts, Snapshot
from cluster_remote.diagnosis.uuid_misuse import misused_uuids
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.key import UUID, decode
from cluster_remote.p2p.text import printable
from cluster_remote.transport.address import BadAddress, Ssh
from cluster_remote.transport.by_process import ssh_environment
from cluster_remote.transport.ssh import ssh_command

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cluster_remote.annex.gitconfig import GitConfig
    from cluster_remote.annex.repository import Repository
    from cluster_remote.p2p.session import Session

__all__ = ["gather", "servers"]

# Seconds to ask a git remote for its branches.
_GIT_TIMEOUT = 20.0
# Seconds to ask a machine for its version of git-annex.
_VERSION_TIMEOUT = 10.0
# The most servers to ask at once: an ssh server may not accept more connections.
_AT_ONCE = 8
# The most versions of uuid.log to search for a description, newest first.
_HISTORY = 200


async def gather(repository: Repository, only: str = "") -> Snapshot:
    """Gather the facts about all cluster remotes, or about one and the remotes for its nodes.

    Raises NotInitialised, CommandFailed, BranchUnreadable, BadSettings if there is no remote called `only`.
    """
    own = await repository.find_uuid()
    await refresh(repository)
    config = await repository.current_config()
    logs = await BranchLogs.read(repository)
    remotes = _cluster_remotes(config, logs, verified(repository) or {})
    if only:
        remotes = _with_its_nodes(only, remotes, logs)
    remotes = [await _with_pending(repository, config, each) for each in remotes]
    replaced = set(misused_uuids(config, logs).values())
    return Snapshot(
        directory=repository.directory,
        uuid=own,
        config=config,
        logs=logs,
        cluster_remotes=tuple(remotes),
        everything=not only,
        branches=() if only else await _branches(repository, config, logs),
        earlier=await _earlier(repository, replaced, logs) if replaced else {},
        exposed_files=tuple(await anyio.to_thread.run_sync(_exposed_files, repository)),
    )


def _cluster_remotes(config: GitConfig, logs: BranchLogs, safe: Mapping[UUID, Mapping[str, str]]) -> list[RemoteFacts]:
    found: list[RemoteFacts] = []
    for name in config.remotes():
        if config.remote(name, "annex-externaltype") != "cluster":
            continue
        try:
            uuid = UUID(config.remote(name, "annex-uuid") or "")
            config_uuid = UUID(config.remote(name, "annex-config-uuid") or uuid.text)
        except ValueError:
            # Left over from a failed initremote; git-annex ignores it too.
            continue
        parameters = logs.remotes.get(config_uuid, {})
        remote = RemoteFacts(name, uuid, config_uuid, parameters, safe.get(config_uuid))
        try:
            # git-annex uses the verified parameters, even if remote.log has changed since.
            settings = Settings.read(partial(_parameter, as_used(remote.verified or parameters)), uuid.text, name)
        except BadSettings as error:
            found.append(replace(remote, unusable=str(error)))
        else:
            found.append(replace(remote, settings=settings))
    return found


def _parameter(parameters: Mapping[str, str], setting: str) -> str:
    return parameters.get(setting, "")


def _with_its_nodes(name: str, remotes: Sequence[RemoteFacts], logs: BranchLogs) -> list[RemoteFacts]:
    """Return the remote with this name, and those for its cluster's nodes. Raises BadSettings."""
    one = next((each for each in remotes if each.name == name), None)
    if one is None:
        known = ", ".join(each.name for each in remotes)
        raise BadSettings(
            f"{name!r} is not a cluster remote of this repository; "
            + (f"choose from {known}" if known else "there is none yet (cluster-remote setup makes one)")
        )
    nodes = logs.clusters.nodes(one.uuid)
    return [one, *(each for each in remotes if each is not one and each.uuid in nodes)]


async def _with_pending(repository: Repository, config: GitConfig, remote: RemoteFacts) -> RemoteFacts:
    """Add the configuration that git-annex wants the user to verify, if any."""
    if remote.verified is None:
        # An older git-annex, which did not ask, did not record what it used; that counts as verified.
        waiting = config.is_unverified(remote.name)
    else:
        # Only the verified configuration has the encryption of a remote that is the same as another one.
        apart = ("encryption", "cipher", "cipherkeys", "mac")
        waiting = _without(remote.parameters, apart) != _without(remote.verified, apart) and bool(remote.parameters)
    return replace(remote, pending=await pending(repository, remote.name)) if waiting else remote


def _without(parameters: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    return {name: value for name, value in parameters.items() if name not in names}


async def _branches(repository: Repository, config: GitConfig, logs: BranchLogs) -> tuple[Branch, ...]:
    """Return the git-annex branches of git remotes: those never fetched, and the gateways'."""
    done = await repository.run("git", "for-each-ref", "--format=%(objectname) %(refname)", "refs/remotes")
    fetched: dict[str, str] = {}
    for line in decode(done.stdout).splitlines():
        name, _, ref = line.partition(" ")
        if ref.endswith("/git-annex"):
            fetched[ref.removeprefix("refs/remotes/").removesuffix("/git-annex")] = name
    found: dict[str, Branch] = {}
    gateways = {uuid.text for uuid in logs.proxied}

    async def ask(remote: str) -> None:
        there = await _branch_there(repository, remote)
        found[remote] = Branch(remote, fetched.get(remote), there)

    asked = [
        remote
        for remote in config.remotes()
        if config.remote(remote, "url")
        and not config.boolean(f"remote.{remote}.annex-ignore")
        and (remote not in fetched or config.remote(remote, "annex-uuid") in gateways)
    ]
    await _for_each(asked, ask)
    return tuple(found[remote] for remote in asked)


async def _branch_there(repository: Repository, remote: str) -> str | None:
    try:
        done = await repository.run("git", "ls-remote", "--", remote, decode(BRANCH), timeout=_GIT_TIMEOUT)
    except AnnexError:
        # An unreachable remote is not a mistake in the configuration.
        return None
    return decode(done.stdout).partition("\t")[0] or None


async def _earlier(repository: Repository, uuids: Collection[UUID], logs: BranchLogs) -> dict[UUID, str]:
    """Return the previous descriptions of repositories."""
    done = await repository.run(
        "git", "log", f"--max-count={_HISTORY}", "--format=%H", decode(BRANCH), "--", "uuid.log"
    )
    commits = decode(done.stdout).split()
    found: dict[UUID, str] = {}
    for commit in commits:
        # One at a time: many large versions would fill the memory.
        [content] = await read_blobs(repository, [f"{commit}:uuid.log".encode()])
        for uuid, description in logformat.newest(logformat.annotated(content or b"")).items():
            if uuid in uuids and description != logs.descriptions.get(uuid):
                found.setdefault(uuid, description)
    return found


def _exposed_files(repository: Repository) -> list[Path]:
    """Return files with secrets that other users can read or change."""
    files = [*_files(repository.annex_dir / "creds"), repository.common_dir / "cluster-remote" / "tokens"]
    return [file for file in files if file.is_file() and not permissions_ok(file)]


def _files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


# Servers


async def servers(facts: Snapshot, reach: Callable[[str], Awaitable[Session]], timeout: float) -> list[Server]:
    """Contact the server of every cluster remote with valid parameters, several at once; each gets `timeout` seconds.

    Skips dead and unverified remotes. `reach` opens a session with a remote by name.
    """
    found: dict[str, Server] = {}
    usable = {
        remote.name: remote.settings
        for remote in facts.cluster_remotes
        if remote.settings is not None
        and facts.logs.trust.get(remote.uuid) != "dead"
        and not facts.config.is_unverified(remote.name)
    }

    async def ask(name: str) -> None:
        found[name] = await _server(name, usable[name], reach, facts.config, timeout)

    await _for_each(list(usable), ask)
    return [found[name] for name in usable]


async def _server(
    name: str, settings: Settings, reach: Callable[[str], Awaitable[Session]], config: GitConfig, timeout: float
) -> Server:
    address = None if settings.address is None else str(settings.address)
    try:
        session = await reach(name)
    except (BadSettings, BadAddress, AnnexError) as error:
        return Server(name, address, None, None, None, str(error))
    try:
        with anyio.fail_after(timeout):
            uuid = await session.open()
            # A server that authenticates us may still be unable to answer requests.
            await session.check_present(ABSENT_KEY)
            version = session.version
    except SessionError as error:
        return Server(name, address, None, None, None, str(error))
    except TimeoutError:
        return Server(name, address, None, None, None, f"{session.name}: no answer within {timeout:g} seconds")
    finally:
        await session.aclose()
    git_annex = await _annex_version(settings.address, config) if isinstance(settings.address, Ssh) else None
    return Server(name, address, uuid, version, git_annex, None)


async def _annex_version(address: Ssh, config: GitConfig) -> str | None:
    """Return the version of git-annex at the other end of ssh; None if it cannot be asked (only git-annex-shell)."""
    command = ssh_command(
        address,
        ["git-annex", "version", "--raw"],
        os.environ,
        config.get("core.sshCommand"),
        config.get("ssh.variant"),
    )
    try:
        done = await child.run(command, env=ssh_environment(), timeout=_VERSION_TIMEOUT)
    except CommandFailed:
        return None
    text = decode(done.stdout).strip()
    return printable(text, 100) if text[:1].isdigit() else None


async def _for_each(names: Sequence[str], ask: Callable[[str], Awaitable[None]]) -> None:
    slots = anyio.Semaphore(_AT_ONCE)

    async def one(name: str) -> None:
        async with slots:
            await ask(name)

    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(one, name)
