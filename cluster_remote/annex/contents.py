"""Find the keys of work tree files, and the file with the content of a key."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster_remote.annex.errors import NoContent, NotAKey
from cluster_remote.p2p.key import AssociatedFile, Key, decode, encode

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["associated_file", "content_of", "key_of", "keys_of"]

# Seconds for git-annex to look up the key of one file, and the keys of any number.
_LOOKUP, _LOOKUPS = 60.0, 600.0


async def key_of(repository: Repository, path: str) -> Key:
    """Return the key of an annexed file; `path` is relative to the cwd. Raises NotAKey, CommandFailed."""
    return (await keys_of(repository, [path], timeout=_LOOKUP))[0]


async def keys_of(repository: Repository, paths: Sequence[str], *, timeout: float = _LOOKUPS) -> list[Key]:
    """Return the keys of annexed files, with a single command. Raises NotAKey, CommandFailed."""
    # Use batch mode: git-annex drops bytes that are not UTF-8 from arguments that it passes to git.
    request = b"".join(encode(path) + b"\0" for path in paths)
    done = await repository.run("git", "annex", "lookupkey", "--batch", "-z", input=request, timeout=timeout)
    found: list[Key] = []
    for path, answer in zip(paths, done.stdout.split(b"\n"), strict=False):
        if not answer:
            raise NotAKey(f"{path!r} is not an annexed file of this repository (git annex add makes it one)")
        found.append(Key(decode(answer)))
    return found


async def content_of(repository: Repository, key: Key) -> bytes:
    """Return the path of the content of a key in this repository. Raises NoContent, CommandFailed."""
    done = await repository.run("git", "annex", "contentlocation", "--batch", input=bytes(key) + b"\n")
    found = done.stdout.strip(b"\n")
    if not found:
        raise NoContent(f"the content of {key} is not in this repository; fetch it with git annex get")
    # git-annex prints a path relative to where it runs.
    return bytes(repository.working_directory / os.fsdecode(found))


def associated_file(repository: Repository, path: str) -> AssociatedFile:
    """Return a file relative to the top of the work tree, as in the protocol; none if it is outside."""
    if repository.work_tree is None:
        return AssociatedFile()
    file = repository.working_directory / path
    # Resolve only the directory, because an annexed file is a symlink itself.
    relative = os.path.relpath(file.parent.resolve() / file.name, repository.work_tree.resolve())
    return AssociatedFile() if relative.startswith("..") else AssociatedFile(relative)
