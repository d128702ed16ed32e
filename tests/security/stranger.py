"""Somebody who can write to the git-annex branch, and what he would have others do."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from tests.support.environment import Environment
from tests.support.repositories import Repository


def commit(repository: Repository, file: str, *lines: str) -> None:
    """Add lines to a file of the git-annex branch, as anybody who can push to it could."""
    before = repository.git("show", f"git-annex:{file}", check=False).stdout
    text = before + "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    environment = repository.environment
    index = {"GIT_INDEX_FILE": str(repository.path / ".git/stranger")}
    run = environment.run
    run("git", "read-tree", "git-annex", cwd=repository.path, env=index)
    blob = run("git", "hash-object", "-w", "--stdin", cwd=repository.path, input=text).stdout.decode().strip()
    run(
        "git",
        "update-index",
        "--add",
        "--replace",
        "--cacheinfo",
        f"100644,{blob},{file}",
        cwd=repository.path,
        env=index,
    )
    tree = run("git", "write-tree", cwd=repository.path, env=index).stdout.decode().strip()
    argv = ("git", "commit-tree", "-p", "git-annex", "-m", "stranger", tree)
    made = run(*argv, cwd=repository.path).stdout.decode().strip()
    repository.git("update-ref", "refs/heads/git-annex", made)


def autoenabled(url: str, name: str = "evil") -> tuple[str, str]:
    """A UUID, and the line of remote.log for a remote of ours that leads to `url` and enables itself in every clone."""
    identity = str(uuid.uuid4())
    return identity, (
        f"{identity} name={name} type=external externaltype=cluster encryption=none autoenable=true "
        f"tracking=remote cluster={identity} {f'url={url} ' if url else ''}timestamp={time.time():.0f}s"
    )


def trap(environment: Environment, name: str) -> Path:
    """Take the place of a program on PATH; the file that is given back is there once it was run.

    Asking a program for its version does not count.
    """
    caught = environment.directory / f"{name} was run"
    program = environment.bin / name
    program.write_text(f"#!/bin/sh\n[ \"$1\" = -V ] && exit\ntouch '{caught}'\nexit 1\n")
    program.chmod(0o755)
    return caught
