"""Clusters with contents, and faults introduced behind git-annex's back."""

from __future__ import annotations

import hashlib
import os
import pty
import select
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from tests.remote.testbed import Testbed, initremote
from tests.support.environment import Environment, remove_tree
from tests.support.forked import popen_forked, run_forked
from tests.support.processes import end_group
from tests.support.repositories import Repository


def store(testbed: Testbed, names: Sequence[str], *, keep: bool = True) -> dict[str, str]:
    """Add files and copy them to the cluster, or move them without `keep`; return their keys by name."""
    for name in names:
        testbed.client.write(name, f"the content of {name}\n".encode())
    testbed.client.annex("add", "--quiet", *names)
    testbed.client.annex("copy" if keep else "move", "--quiet", "--to", "mycl", *names)
    testbed.client.git("commit", "--quiet", "-m", "files", "--", *names)
    return {name: testbed.client.key(name) for name in names}


def stock(testbed: Testbed, count: int) -> list[str]:
    """Put so many contents on every node and into the client's log, without using any remote."""
    contents = {}
    for number in range(count):
        content = f"content number {number}\n".encode()
        contents[f"SHA256-s{len(content)}--{hashlib.sha256(content).hexdigest()}"] = content
    question = "".join(f"{key}\n" for key in contents).encode()
    folders = testbed.client.annex(
        "examinekey", "--batch", "--format=${hashdirmixed}\\n", input=question
    ).stdout.decode()
    for node in testbed.cluster.nodes:
        for (key, content), folder in zip(contents.items(), folders.split("\n"), strict=False):
            place = node.path / ".git/annex/objects" / folder / key
            place.mkdir(parents=True)
            (place / key).write_bytes(content)
    lines = "".join(f"{key} {node.uuid} 1\n" for key in contents for node in testbed.cluster.nodes)
    testbed.client.annex("setpresentkey", "--batch", input=lines.encode(), timeout=120)
    return list(contents)


def empty(node: Repository) -> None:
    """Remove all contents of a node without recording it anywhere."""
    remove_tree(node.path / ".git/annex/objects")


def unverified(testbed: Testbed, name: str) -> Repository:
    """Return another clone where a shared remote for the cluster is enabled but not verified."""
    initremote(testbed.client, name, f"url={testbed.url}", sameas=testbed.cluster.uuid, private=False)
    testbed.client.git("push", "--quiet", "origin", "git-annex:refs/heads/synced/git-annex")
    other = testbed.cluster.clone("other")
    other.git("fetch", "--quiet", "origin")
    other.annex("merge", "--quiet")
    other.annex("enableremote", name, "encryption=none")
    return other


def carry_out(where: Repository, commands: Sequence[str]) -> None:
    """Run commands as they were printed.

    Raises:
        AssertionError: one failed.
    """
    for command in commands:
        program, *arguments = shlex.split(command)
        if program == "cluster-remote":
            run_forked(where.environment, *arguments, cwd=where.path)
        else:
            where.environment.run(program, *arguments, cwd=where.path)


def on_a_terminal(
    environment: Environment,
    cwd: Path,
    *argv: str,
    within: float = 60.0,
    env: dict[str, str] | None = None,
    typed: bytes = b"",
) -> str:
    """Return what a command writes to a terminal of 100 columns, standard error included. `typed` is its input.

    Raises:
        AssertionError: it did not end within so many seconds.
    """
    master, slave = pty.openpty()
    deadline = time.monotonic() + within
    written = b""
    variables = {"TERM": "xterm-256color", "COLUMNS": "100", **(env or {})}
    process = popen_forked(environment, *argv, cwd=cwd, env=variables, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    os.write(master, typed)
    with process:
        try:
            while True:
                readable, _, _ = select.select([master], [], [], max(0.0, deadline - time.monotonic()))
                assert readable, f"{argv} did not end within {within} s: {written!r}"
                try:
                    chunk = os.read(master, 1 << 16)
                except OSError:  # how a terminal says that nobody writes to it any more
                    break
                if not chunk:
                    break
                written += chunk
        except BaseException:
            end_group(process.pid)
            raise
        finally:
            os.close(master)
    return os.fsdecode(written)
