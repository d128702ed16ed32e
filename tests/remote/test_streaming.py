"""git-annex as a gateway in front of this special remote: what it passes on while the remote still writes it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.remote.testbed import Testbed, initremote
from tests.support.processes import end_group

CLIENT = "c11e0000-0000-4000-8000-000000000002"
HALF = 6_000_000

STOP_HALF_WAY = f"""
import os, sys
passed = 0
while data := os.read(0, 65536):
    passed += len(data)
    if passed > {HALF} and sys.argv[1]:
        open(sys.argv[1]).close()
        sys.argv[1] = ""
    while data:
        data = data[os.write(1, data):]
"""
"""Passes on what it reads; after half of a content not before the named pipe has been opened for writing."""


@pytest.mark.parametrize("backend", ["SHA256", "WORM"])
def test_content_is_streamed_as_it_arrives_if_its_key_has_a_checksum(own_testbed: Testbed, backend: str) -> None:
    gateway, node = own_testbed.client, own_testbed.cluster.nodes[0]
    initremote(gateway, "n1", f"url={own_testbed.url}", sameas=node.uuid)
    gateway.git("config", "remote.n1.annex-proxy", "true")
    gateway.annex("updateproxy")
    content = os.urandom(2 * HALF)
    gateway.write("f", content)
    gateway.annex("add", "--quiet", f"--backend={backend}", "f")
    key = gateway.key("f")
    gateway.annex("move", "--quiet", "--to", "n1", "f")
    environment = own_testbed.environment
    gate = environment.directory / "gate"
    os.mkfifo(gate)
    real = environment.which("git-annex-shell")
    script = environment.directory / "stop.py"
    script.write_text(STOP_HALF_WAY)
    environment.program(
        "git-annex-shell",
        f'#!/bin/sh\ncase "$*" in\n*p2pstdio?{own_testbed.url}?*) {real} "$@" | {sys.executable} {script} {gate};;\n'
        f'*) exec {real} "$@";;\nesac\n',
    )
    process = environment.popen(
        *("git-annex-shell", "p2pstdio", gateway.path, CLIENT, "--uuid", node.uuid), stderr=subprocess.DEVNULL
    )
    try:
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == f"AUTH-SUCCESS {node.uuid}\n".encode()
            process.stdin.write(f"GET 0 f {key}\n".encode())
            process.stdin.flush()
            if backend == "WORM":
                # Not before it is whole: when its node failed, it would start over at another one.
                gate.write_bytes(b"")
            assert process.stdout.readline() == f"DATA {len(content)}\n".encode()
            received = process.stdout.read(HALF // 2)
            if backend != "WORM":
                gate.write_bytes(b"")
            received += process.stdout.read(len(content) - len(received))
            assert received == content
            process.stdin.write(b"SUCCESS\n")
            process.stdin.close()
            process.wait(30)
    finally:
        end_group(process.pid)
