"""`cluster-remote token`: tokens are created, shown once, listed without their text, and revoked."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from cluster_remote.gateway.tokens import Tokens, read_claim
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.server import Mode
from tests.cli.command import cluster_remote
from tests.support.repositories import Cluster

TOKEN = re.compile("[a-z2-7]{52}")


def tokens(shared: Cluster) -> Tokens:
    return Tokens(shared.gateway.path / ".git" / "cluster-remote" / "tokens")


@pytest.mark.parametrize(
    ("option", "mode"),
    [((), Mode.READ_WRITE), (("--read-only",), Mode.READ_ONLY), (("--append-only",), Mode.APPEND_ONLY)],
)
def test_a_new_token_is_printed_once_and_has_the_requested_mode(
    shared: Cluster, option: tuple[str, ...], mode: Mode
) -> None:
    (text,) = cluster_remote(shared.gateway, "token", "create", *option, "--note", "for the café").out.splitlines()
    assert TOKEN.fullmatch(text)
    token = tokens(shared).check(text)
    assert token is not None
    assert (token.mode, token.note) == (mode, "for the café")
    listed = cluster_remote(shared.gateway, "token", "list").out
    assert text not in listed
    (line,) = [line for line in listed.splitlines() if token.id in line]
    assert mode.value in line
    assert "for the café" in line


def test_a_revoked_token_is_neither_listed_nor_accepted(shared: Cluster) -> None:
    text = cluster_remote(shared.gateway, "token", "create", "--note", "the old laptop").out.strip()
    token = tokens(shared).check(text)
    assert token is not None
    said = cluster_remote(shared.gateway, "token", "revoke", token.id).out
    assert said == f"{token.id} is revoked (the old laptop)\n"
    assert tokens(shared).check(text) is None
    assert token.id not in cluster_remote(shared.gateway, "token", "list").out


def test_without_tokens_the_list_says_how_to_make_one(shared: Cluster) -> None:
    assert "token create" in cluster_remote(shared.nodes[0], "token", "list").out


def test_json_output_has_the_same_fields(shared: Cluster) -> None:
    before = int(time.time())
    new = json.loads(cluster_remote(shared.gateway, "token", "create", "--read-only", "--note", "n", "--json").out)
    assert set(new) == {"token", "text", "link"}
    assert TOKEN.fullmatch(new["text"])
    assert new["link"] is None
    assert {name: new["token"][name] for name in ("mode", "note")} == {"mode": "read-only", "note": "n"}
    assert before <= new["token"]["created"] <= time.time()
    listed = json.loads(cluster_remote(shared.gateway, "token", "list", "--json").out)["tokens"]
    assert listed[-1] == new["token"]
    gone = json.loads(cluster_remote(shared.gateway, "token", "revoke", new["token"]["id"], "--json").out)
    assert gone == new["token"]
    assert json.loads(cluster_remote(shared.gateway, "token", "list", "--json").out)["tokens"] == listed[:-1]


def test_a_link_holds_the_address_and_the_token(shared: Cluster) -> None:
    address = "tcp://gateway.example:9419"
    link = cluster_remote(shared.gateway, "token", "create", "--link", "--address", address).out.strip()
    start, _, text = link.rpartition(":")
    assert start == f"p2p-annex::cluster:{address}"
    assert tokens(shared).check(text)


@pytest.mark.parametrize("by", ["name", "uuid", "cluster", "here"])
def test_a_link_to_one_repository_names_it(shared: Cluster, by: str) -> None:
    uuid = {
        "name": shared.nodes[1].uuid,
        "uuid": shared.nodes[1].uuid,
        "cluster": shared.uuid,
        "here": shared.gateway.uuid,
    }[by]
    node = {"name": "node2", "uuid": uuid, "cluster": "mycluster", "here": "here"}[by]
    created = cluster_remote(
        shared.gateway, "token", "create", "--link", "--address", "unix:/run/gw", "--node", node, "--json"
    )
    new = json.loads(created.out)
    start, _, presented = new["link"].rpartition(":")
    assert start == f"p2p-annex::cluster:unix:/run/gw?node={uuid}"
    claim = read_claim(presented)
    assert claim is not None
    assert (claim.token, claim.wanted) == (new["text"], UUID(uuid))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("create", "--read-only", "--append-only"), 2, "exclude each other"),
        (("create", "--link"), 2, "--link and --address ADDRESS must be given together"),
        (("create", "--address", "unix:/run/gw"), 2, "--link and --address ADDRESS must be given together"),
        (("create", "--expires", "soon"), 2, "--expires: 'soon' is neither"),
        (("create", "--expires", "2001-01-31"), 2, "--expires: 2001-01-31 is in the past"),
        (("create", "--link", "--address", "ssh://nas/annex"), 2, "a gateway listens on unix:/path"),
        (("create", "--link", "--address", "unix:/run/gw", "--node", "node9"), 2, "choose from here, mycluster, node1"),
        (("create", "--note", "two\nlines"), 2, "--note: a note may have at most 200 printable characters"),
        (("revoke", "0bad0bad"), 1, "there is no token '0bad0bad'"),
        (("revoke",), 2, "ID"),
        (("unknown",), 2, "unknown"),
    ],
)
def test_an_impossible_request_is_explained_and_makes_no_token(
    shared: Cluster, arguments: tuple[str, ...], code: int, words: str
) -> None:
    before = tokens(shared).all()
    done = cluster_remote(shared.gateway, "token", *arguments, code=code)
    assert words in done.err
    assert done.out == ""
    assert tokens(shared).all() == before


@pytest.mark.parametrize("command", [("create",), ("list",), ("revoke", "0bad0bad")])
def test_token_outside_a_repository_says_so(shared: Cluster, command: tuple[str, ...], tmp_path: Path) -> None:
    said = cluster_remote(shared.gateway.environment, "token", *command, cwd=tmp_path, code=4).err
    assert "git annex init" in said


def test_token_works_from_a_subdirectory(shared: Cluster) -> None:
    below = shared.gateway.path / "below" / "this"
    below.mkdir(parents=True)
    text = cluster_remote(shared.gateway, "token", "create", cwd=below).out.strip()
    assert tokens(shared).check(text)


@pytest.mark.parametrize(
    "command", [("serve",), ("token",), ("token", "create"), ("token", "list"), ("token", "revoke")]
)
def test_help_has_an_example(shared: Cluster, command: tuple[str, ...]) -> None:
    said = cluster_remote(shared.gateway, *command, "--help").out
    assert "Example: cluster-remote" in said or command == ("token",)
