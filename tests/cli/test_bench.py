"""cluster-remote bench: measures by every way, on repositories of its own. How fast is not for a test to say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.environment import Environment


def test_every_way_and_the_limit_are_measured_and_nothing_is_left(environment: Environment, tmp_path: Path) -> None:
    figures, chart = tmp_path / "figures.json", tmp_path / "chart.svg"
    done = environment.run(
        "cluster-remote", "bench", "--case", "small", "--case", "limit", "--case", "start", "--files", "2",
        "--rounds", "1", "--nodes", "2", "--json", figures, "--chart", chart,
        cwd=tmp_path, timeout=280,
    )  # fmt: skip
    cases = {case["case"]: case["median seconds"] for case in json.loads(figures.read_text())["cases"]}
    ways = {"native-ssh", "native-http", "remote", "serverless", "gateway"}
    for step in ("down", "check", "drop"):
        assert set(cases[f"2 files of 10 kB {step}, 2 nodes, -J1"]) == ways
    assert set(cases["2 files of 10 kB up, 2 nodes, -J1"]) == ways | {"limit"}
    assert set(cases["start to the first line"]) == {"ours", "nothing"}
    assert all(seconds > 0 for case in cases.values() for seconds in case.values())
    assert chart.read_text().startswith("<svg ")
    assert b"serverless" in done.stdout
    assert not list(Path(environment.env["TMPDIR"]).iterdir())


@pytest.mark.parametrize(
    "arguments", [["--case", "nosuch"], ["--way", "nosuch"], ["--size", "big"], ["--size", "0"], ["--rounds", "0"]]
)
def test_what_cannot_be_measured_is_said(environment: Environment, tmp_path: Path, arguments: list[str]) -> None:
    done = environment.run("cluster-remote", "bench", *arguments, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_a_command_that_fails_is_not_measured(environment: Environment, tmp_path: Path) -> None:
    real = environment.which("git-annex")
    environment.program("git-annex", f'#!/bin/sh\n[ "$1" = copy ] && exit 1\nexec {real} "$@"\n')
    done = environment.run(
        "cluster-remote", "bench", "--case", "small", "--files", "1", "--rounds", "1", "--nodes", "1",
        "--way", "serverless", cwd=tmp_path, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "git annex copy" in os.fsdecode(done.stderr)
    assert not list(Path(environment.env["TMPDIR"]).iterdir())
