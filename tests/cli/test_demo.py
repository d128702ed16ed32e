"""cluster-remote demo shows the main job and stops at the first step that did not happen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.environment import Environment


@pytest.fixture
def temporary(environment: Environment) -> Path:
    """The directory where the demo works; empty."""
    directory = Path(environment.env["TMPDIR"])
    assert not list(directory.iterdir())
    return directory


@pytest.mark.slow
def test_every_step_does_what_it_shows_and_leaves_nothing_behind(environment: Environment, temporary: Path) -> None:
    done = environment.run("cluster-remote", "demo", cwd=environment.directory, timeout=280)
    text = os.fsdecode(done.stdout)
    for step in ("setup", "git annex copy", "git annex whereis", "git annex drop", "git annex get", "git annex move"):
        assert f"$ {step}" in text or f"$ cluster-remote {step}" in text
    assert text.rstrip().endswith("Every step worked.")
    assert not list(temporary.iterdir())


def test_a_step_that_does_not_do_what_it_shows_aborts_the_demo(environment: Environment, temporary: Path) -> None:
    real = environment.which("git-annex")
    # Says that it copied, and does nothing.
    environment.program("git-annex", f'#!/bin/sh\n[ "$1" = copy ] && echo copy ok && exit 0\nexec {real} "$@"\n')
    done = environment.run("cluster-remote", "demo", cwd=environment.directory, check=False, timeout=280)
    assert done.returncode == 1
    assert b"The demo failed: the content is in all" in done.stderr
    assert not list(temporary.iterdir())


def test_the_demo_without_git_annex_says_what_is_missing(environment: Environment, temporary: Path) -> None:
    program = environment.which("cluster-remote")
    environment.env["PATH"] = "/usr/bin:/bin"
    done = environment.run(program, "demo", cwd=environment.directory, check=False)
    assert done.returncode == 1
    assert b"git-annex is not on PATH" in done.stderr
