"""The oldest git-annex that the documentation names does the main job, and passes its own test of the remote."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cluster_remote.annex.version import NEEDED
from tests.support.environment import Environment
from tests.support.repositories import make_repository


@pytest.mark.slow
def test_the_oldest_git_annex_sets_up_stores_and_tests_a_cluster(environment: Environment, tmp_path: Path) -> None:
    # pip's own configuration is where it is told which package index to use.
    told = {name: os.environ[name] for name in os.environ if name.startswith(("PIP_", "SSL_", "HTTP", "http"))}
    home = {"HOME": os.environ["HOME"]}
    old = tmp_path / "old"
    environment.run(sys.executable, "-m", "venv", old, timeout=120, env=home)
    environment.run(
        old / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", f"git-annex=={NEEDED}",
        timeout=250, env={**told, **home},
    )  # fmt: skip
    environment.env["PATH"] = f"{old / 'bin'}{os.pathsep}{environment.env['PATH']}"
    assert NEEDED.encode() in environment.run("git-annex", "version", "--raw").stdout
    laptop = make_repository(environment, environment.directory / "laptop", "laptop")
    for name in ("disk1", "disk2"):
        environment.run("git", "clone", "--quiet", laptop.path, environment.directory / name)
        environment.run("git", "annex", "init", "--quiet", name, cwd=environment.directory / name)
        laptop.git("remote", "add", name, environment.directory / name)
    environment.run("cluster-remote", "setup", "disks", "--node", "disk1", "--node", "disk2", cwd=laptop.path)
    key = laptop.add("photo.jpg", b"photo")
    laptop.annex("copy", "--quiet", "--to", "disks", "photo.jpg")
    assert len(laptop.locations(key)) == 3
    laptop.annex("testremote", "--fast", "disks", "--size=99", timeout=200)
