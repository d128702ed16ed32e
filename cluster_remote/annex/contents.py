"""Find the key of a work tree file, and the file with the content of a key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cluster_remote.annex.errors import NoContent, NotAKey
from cluster_remote.p2p.key import AssociatedFile, Key, decode, encode

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["associated_file", "content_of", "key_of"]


async def key_of(repository: Repository, path: str) -> Key:
    """Return the key of an annexed file; `path` is relative to the cwd. Raises NotAKey, CommandFailed."""
    # Use batch mode: git-annex drops bytes that are not UTF-8 from arguments that it passes to git.
    done = await repository.run("git", "annex", "lookupkey", "--batch", "-z", input=encode(path) + b"\0")
    text = decode(done.stdout.strip(b"\n\0"))
    if not text:
        raise NotAKey(f"{path!r} is not an annexed file of this repository (git annex add makes it one)")
    return Key.parse(text)


async def content_of(repository: Repository, key: Key) -> bytes:
    """Return the path of the content of a key in this repository. Raises NoContent, CommandFailed."""
    done = await repository.run("git", "annex", "contentlocation", "--batch", input=bytes(key) + b"\n")
    found = done.stdout.strip(b"\n")
    if not found:
        raise NoContent(f"the content of {key} is not in this repository; git annex get brings it here")
    # git-annex prints it relative to where it ran.
    return bytes((repository.cwd or Path.cwd()) / os.fsdecode(found))


def associated_file(repository: Repository, path: str) -> AssociatedFile:
    """Return a file as the protocol names it, relative to the top of the work tree; None if it is outside."""
    if repository.work_tree is None:
        return AssociatedFile()
    file = (repository.cwd or Path.cwd()) / path
    # Resolve only the directory, because an annexed file is a symlink itself.
    relative = os.path.relpath(file.parent.resolve() / file.name, repository.work_tree.resolve())
    return AssociatedFile() if relative.startswith("..") else AssociatedFile(relative)
