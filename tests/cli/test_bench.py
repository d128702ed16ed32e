"""cluster-remote bench: measures by every way, on repositories of its own. How fast is not for a test to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import cluster_remote
from tests.remote.testbed import initremote, make_testbed
from tests.support.environment import Environment
from tests.support.repositories import make_repository


@pytest.mark.slow
def test_every_way_and_the_limit_are_measured_and_nothing_is_left_behind(
    environment: Environment, tmp_path: Path
) -> None:
    figures, chart = tmp_path / "figures.json", tmp_path / "chart.svg"
    done = environment.run(
        "cluster-remote", "bench", "--case", "small", "--case", "limit", "--case", "start",
        "--case", "lines", "--files", "2", "--size", "100k", "--rounds", "1", "--nodes", "2",
        "--json", figures, "--chart", chart, "--profile", tmp_path / "profiles",
        cwd=tmp_path, timeout=280,
    )  # fmt: skip
    measured = json.loads(figures.read_text())["cases"]
    cases = {case["case"]: case["median seconds"] for case in measured}
    ways = {
        "native-ssh", "native-http", "remote", "serverless", "gateway", "remote-http", "gateway-http", "client-http",
        "plain", "bare",
    }  # fmt: skip
    for step in ("down", "check", "drop"):
        assert set(cases[f"2 files of 10 kB {step}, 2 nodes, -J1"]) == ways
    assert set(cases["2 files of 10 kB up, 2 nodes, -J1"]) == ways | {"limit"}
    assert set(cases["start to the first line"]) == {"ours", "nothing"}
    assert set(cases["1 file of 100k down, 3 nodes on lines of 10 MB/s"]) == {"one node", "serverless"}
    assert all(seconds > 0 for case in cases.values() for seconds in case.values())
    up = next(case for case in measured if case["case"].startswith("2 files of 10 kB up"))
    seconds = up["median seconds"]
    assert up["floor in seconds"] == seconds["bare"] + seconds["limit"]
    assert chart.read_text().startswith("<svg ")
    assert b"serverless" in done.stdout
    assert b"function calls" in done.stdout
    assert list((tmp_path / "profiles").glob("*.profile"))
    assert not list(Path(environment.env["TMPDIR"]).iterdir())


@pytest.mark.slow
def test_many_keys_and_many_clients_are_measured_and_nothing_is_left_behind(
    environment: Environment, tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    done = environment.run(
        "cluster-remote", "bench", "--case", "keys", "--keys", "3", "--keys", "6", "--way", "serverless",
        "--case", "clients", "--clients", "2", "--files", "4", "--rounds", "1", "--nodes", "2", "--json", figures,
        cwd=tmp_path, timeout=280,
    )  # fmt: skip
    measured = json.loads(figures.read_text())["figures"]
    for number in (3, 6):
        for command in ("status", "check --all", "repair --dry-run", "first transfer"):
            assert measured[f"{command}, {number} keys, 2 nodes"]["serverless"]["seconds"][0] > 0
    served = measured["4 files of 10 kB stored by 2 clients of serve"]["gateway"]
    assert served["seconds"][0] > 0
    assert served["longest wait, in medians"][0] >= 1
    for when in ("at the start", "in the middle", "at the end"):
        assert served[f"our memory {when} (bytes)"][0] > 0
        assert served[f"descriptors {when}"][0] > 0
    assert b"2 times as many keys take" in done.stderr
    assert not list(Path(environment.env["TMPDIR"]).iterdir())


@pytest.mark.parametrize(
    "arguments", [["--case", "nosuch"], ["--way", "nosuch"], ["--size", "big"], ["--size", "0"], ["--rounds", "0"]]
)
def test_a_measurement_that_is_impossible_is_refused(
    environment: Environment, tmp_path: Path, arguments: list[str]
) -> None:
    cluster_remote(environment, "bench", *arguments, cwd=tmp_path, code=2)


def test_a_command_that_fails_is_not_measured(environment: Environment, tmp_path: Path) -> None:
    real = environment.which("git-annex")
    environment.program("git-annex", f'#!/bin/sh\n[ "$1" = copy ] && exit 1\nexec {real} "$@"\n')
    done = cluster_remote(
        environment, "bench", "--case", "small", "--files", "1", "--rounds", "1", "--nodes", "1",
        "--way", "serverless", cwd=tmp_path, code=1, timeout=120,
    )  # fmt: skip
    assert "git annex copy" in done.err
    assert not list(Path(environment.env["TMPDIR"]).iterdir())


def test_an_existing_remote_can_be_measured_and_nothing_is_left_on_it(environment: Environment) -> None:
    testbed = make_testbed(environment)
    figures = environment.directory / "figures.json"
    cluster_remote(
        testbed.client, "bench", "mycl", "--size", "100k", "--files", "3", "--rounds", "2", "--json", str(figures)
    )
    cases = {case["case"]: case["median seconds"] for case in json.loads(figures.read_text())["cases"]}
    assert set(cases) == {
        f"{load} {step}" for load in ("1 file of 100k", "3 files of 10 kB") for step in ("up", "check", "down", "drop")
    }
    assert all(seconds["mycl"] > 0 for seconds in cases.values())
    for node in testbed.cluster.nodes:
        assert not list((node.path / ".git/annex/objects").glob("*/*/*"))
    assert "SHA256-s" not in testbed.client.annex("find", "--in", "mycl").stdout.decode()


def test_content_that_cannot_be_removed_afterwards_is_named(environment: Environment) -> None:
    node = make_repository(environment, environment.directory / "node", "node")
    arguments = ("bench", str(node.path), "--case", "small", "--files", "2", "--rounds", "1")
    done = cluster_remote(environment, *arguments, code=1, env={"GIT_ANNEX_SHELL_APPENDONLY": "1"})
    assert done.err.count(" may be left behind: ") == 2
    assert "2 files of 10 kB down" in done.err
    assert len(list((node.path / ".git/annex/objects").glob("*/*/*"))) == 2


def test_a_refused_upload_ends_the_measurement(environment: Environment) -> None:
    node = make_repository(environment, environment.directory / "node", "node")
    arguments = ("bench", str(node.path), "--case", "small", "--files", "2", "--rounds", "1")
    done = cluster_remote(environment, *arguments, code=1, env={"GIT_ANNEX_SHELL_READONLY": "1"})
    assert "this repository is read-only" in done.err.splitlines()[-1]
    assert "10 kB up" not in done.err
    assert not list((node.path / ".git/annex/objects").glob("*/*/*"))


def test_an_existing_remote_is_measured_only_unencrypted_and_alone(environment: Environment) -> None:
    testbed = make_testbed(environment)
    assert "without --way" in cluster_remote(testbed.client, "bench", "mycl", "--way", "remote", code=2).err
    assert "without --way" in cluster_remote(testbed.client, "bench", "mycl", "--case", "start", code=2).err
    stranger = make_repository(environment, environment.directory / "stranger", "stranger")
    parameters = (f"url={testbed.url}", f"cluster={testbed.cluster.uuid}", "tracking=remote", "encryption=shared")
    initremote(stranger, "vault", *parameters)
    assert "unencrypted" in cluster_remote(stranger, "bench", "vault", code=2).err
