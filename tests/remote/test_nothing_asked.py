"""Questions nodes are not asked: without a server each is a round trip to every disk and NAS."""

from __future__ import annotations

import re
from pathlib import Path

from tests.remote.testbed import initremote
from tests.support.environment import Environment
from tests.support.repositories import Cluster


def listening(environment: Environment, log: Path) -> None:
    """Log what is sent to nodes, one file per session."""
    log.mkdir()
    real = environment.which("git-annex-shell")
    environment.program(
        "git-annex-shell",
        f'#!/bin/sh\ncase "$1" in\np2pstdio) tee "{log}/$$" | {real} "$@";;\n*) exec {real} "$@";;\nesac\n',
    )


def requests(log: Path) -> list[str]:
    """Return the first word of every request."""
    said = b"\n".join(file.read_bytes() for file in log.iterdir())
    # What is in a content ends with VALID.
    return [word.decode() for word in re.findall(rb"^([A-Z-]+)(?: |$)", said, re.MULTILINE)]


def test_new_files_are_sent_without_asking_nodes_for_presence(cluster: Cluster) -> None:
    gateway, log = cluster.gateway, cluster.gateway.environment.directory / "said"
    initremote(gateway, "everywhere", sameas=cluster.uuid)
    for number in range(20):
        gateway.write(f"f{number}", f"content {number} ".encode())
    gateway.annex("add", "--quiet", ".")
    listening(gateway.environment, log)
    gateway.annex("copy", "--quiet", "--to", "everywhere", ".")
    said = requests(log)
    assert said.count("PUT") == said.count("DATA") == 3 * 20
    assert set(said) <= {"VERSION", "BYPASS", "PUT", "DATA"}
    assert all(node.has_object(gateway.key("f7")) for node in cluster.nodes)
