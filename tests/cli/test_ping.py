"""cluster-remote ping: is there anybody, and who?"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.remote.testbed import initremote
from tests.support.environment import Environment
from tests.support.forked import run_forked
from tests.support.repositories import Cluster, Repository


def ping(where: Path, environment: Environment, *arguments: str, code: int) -> str:
    done = run_forked(environment, "ping", *arguments, cwd=where, check=False)
    text = os.fsdecode(done.stdout + done.stderr)
    assert done.returncode == code, text
    assert "Traceback" not in text
    return text


def test_ping_shows_who_answers_in_which_version_and_how_fast(cluster: Cluster, client: Repository) -> None:
    initremote(client, "mycl", f"url={cluster.gateway.path}", sameas=cluster.uuid)
    text = ping(client.path, client.environment, "mycl", code=0)
    assert cluster.uuid in text
    assert "protocol version 4" in text
    assert "round trip" in text


def test_an_address_can_be_pinged_from_anywhere(cluster: Cluster, environment: Environment, tmp_path: Path) -> None:
    answer = json.loads(ping(tmp_path, environment, str(cluster.nodes[0].path), "--json", code=0))
    assert answer["uuid"] == cluster.nodes[0].uuid
    assert answer["version"] == 4
    assert 0 < answer["round_trip"] < answer["connecting"]


def test_an_unreachable_server_has_its_own_exit_code(environment: Environment, tmp_path: Path) -> None:
    environment.env["CLUSTER_REMOTE_TOKEN"] = "secret"
    text = ping(tmp_path, environment, "unix:/nowhere/at/all", code=3)
    assert "cannot connect" in text
    assert "secret" not in text


def test_an_unknown_name_is_distinguished_from_an_address(client: Repository) -> None:
    text = ping(client.path, client.environment, "nosuch", code=2)
    assert "'nosuch' is not a cluster remote of this repository" in text


def test_pinging_a_name_outside_a_repository_says_so(environment: Environment, tmp_path: Path) -> None:
    assert "no usable git repository" in ping(tmp_path, environment, "mycl", code=4)


def test_a_missing_repository_is_unreachable(environment: Environment, tmp_path: Path) -> None:
    text = ping(tmp_path, environment, str(tmp_path / "gone"), code=3)
    assert str(tmp_path / "gone") in text
