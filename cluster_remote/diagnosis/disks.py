"""The directories of nodes on this machine, and the free space on their disks."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from cluster_remote.annex import child
from cluster_remote.annex.disk import ask_disk, free_bytes
from cluster_remote.annex.errors import CommandFailed
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.repository import foreign_environment
from cluster_remote.cluster.membership import Direct, way_to
from cluster_remote.p2p.key import UUID
from cluster_remote.transport.address import Directory

if TYPE_CHECKING:
    from cluster_remote.access.view import View

__all__ = ["free_space", "paths"]

# Seconds for git to read a configuration.
_CONFIG = 30.0


async def free_space(directories: Mapping[UUID, Path], timeout: float) -> dict[UUID, int]:
    """Return the free bytes of each directory's disk that answers within `timeout` seconds."""
    found: dict[UUID, int] = {}

    async def look(uuid: UUID, path: Path) -> None:
        free = await ask_disk(_free, path)
        if free is not None:
            found[uuid] = free

    with anyio.move_on_after(timeout):
        async with anyio.create_task_group() as tasks:
            for uuid, path in directories.items():
                tasks.start_soon(look, uuid, path)
    return found


def _free(path: Path) -> int | None:
    try:
        return free_bytes(os.statvfs(path))
    except OSError:
        return None


async def paths(view: View) -> dict[UUID, Path]:
    """Return the nodes' directories on this machine, as far as the gateway's or this repository's configuration tells.

    Empty for a gateway on another machine.
    """
    if view.gateway is None:
        base = view.repository.work_tree or view.repository.git_dir if view.repository else Path.cwd()
        return _paths_of(view.config, base, view.uuids)
    directory = view.gateway.directory
    if directory is None:
        return {}
    command = ("git", "-C", str(directory), "config", "--list", "-z")
    try:
        listing = await child.run(command, env=foreign_environment(), timeout=_CONFIG)
    except CommandFailed:
        return {}
    config = GitConfig.parse(listing.stdout)
    found = _paths_of(config, directory, view.uuids)
    own = config.get("annex.uuid")
    return found | {uuid: directory for uuid in view.uuids if uuid.text == own}


def _paths_of(config: GitConfig, base: Path, wanted: Collection[UUID]) -> dict[UUID, Path]:
    """Return the directories of a repository's remotes on this machine; `base` is the repository's own."""
    found: dict[UUID, Path] = {}
    for remote in config.remotes():
        uuid = config.remote_uuid(remote)
        if uuid is None or uuid not in wanted or config.is_unverified(remote):
            continue
        match config.remote(remote, "annex-directory"), way_to(config, remote, base):
            case (str(path), _) | (None, Direct(Directory(path))):
                found[uuid] = base / path
    return found
