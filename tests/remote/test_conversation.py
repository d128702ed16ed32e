"""What the program answers to git-annex: questions that need no server, ones that do, and ones that make no sense."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.remote.driver import Driver
from tests.remote.testbed import Testbed, text
from tests.support.repositories import DESCRIPTIONS
from tests.support.sockets import free_port, serve_p2p

KEY = "WORM-s4-m1--conversation"


def fields(annex: Driver) -> dict[str, str]:
    """The answer to GETINFO."""
    annex.say("GETINFO")
    found: dict[str, str] = {}
    while (line := annex.answer()) != "INFOEND":
        name = line.removeprefix("INFOFIELD ")
        found[name] = annex.read().removeprefix("INFOVALUE ")
    return found


# Without a server


def test_parameters_are_listed_with_descriptions(testbed: Testbed) -> None:
    with testbed.driver(url="") as annex:
        annex.say("LISTCONFIGS")
        listed = dict(line.removeprefix("CONFIG ").split(" ", 1) for line in iter(annex.answer, "CONFIGEND"))
        assert listed.keys() == {"url", "cluster", "tracking", "timeout"}
        assert all(len(description) > 20 for description in listed.values())


def test_git_annex_knows_the_parameters(testbed: Testbed) -> None:
    said = text(testbed.client.annex("initremote", "x", "type=external", "externaltype=cluster", "--whatelse"))
    for name in ("url", "cluster", "tracking", "timeout"):
        assert f"\n{name}\n" in said
    refused = testbed.client.annex(
        *("initremote", "x", "type=external", "externaltype=cluster", "encryption=none", "speed=fast"), check=False
    )
    assert "speed" in text(refused)


@pytest.mark.parametrize(
    ("url", "cost", "availability"),
    [
        (str(Path(__file__).parents[2]), 100, "LOCAL"),
        ("unix:/dev/null", 100, "LOCAL"),
        ("tcp://127.0.0.1:1", 100, "LOCAL"),
        ("tcp://gateway.example:1", 200, "GLOBAL"),
        ("ssh://gateway.example/dir", 200, "GLOBAL"),
        ("", 50, "LOCAL"),
    ],
)
def test_cost_and_availability_follow_from_the_address(
    testbed: Testbed, url: str, cost: int, availability: str
) -> None:
    with testbed.driver(url=url) as annex:
        annex.prepare()
        assert annex.ask("GETCOST") == f"COST {cost}"
        assert annex.ask("GETAVAILABILITY") == f"AVAILABILITY {availability}"
        assert annex.ask("EXPORTSUPPORTED") == "EXPORTSUPPORTED-FAILURE"
        assert annex.debug == []


@pytest.mark.parametrize("line", ["CLAIMURL http://x/", "IMPORTKEYSUPPORTED", "TRANSFER THROW a b"])
def test_unsupported_requests_are_answered_as_such(testbed: Testbed, line: str) -> None:
    with testbed.driver() as annex:
        annex.prepare()
        assert annex.ask(line) in {"UNSUPPORTED-REQUEST", "CLAIMURL-FAILURE"}
        assert annex.ask("GETCOST") == "COST 100"


def test_a_question_refused_by_git_annex_fails_only_its_request(testbed: Testbed) -> None:
    with testbed.driver() as annex:
        annex.say("PREPARE")
        assert annex.read() == "GETUUID"
        annex.say("ERROR cannot send GETUUID here")
        assert annex.answer().startswith("PREPARE-FAILURE ")
        # There is no failure that git-annex would understand.
        annex.say("GETCOST")
        assert annex.read() == "GETUUID"
        annex.say("ERROR cannot send GETUUID here")
        assert annex.answer() == "UNSUPPORTED-REQUEST"
        annex.prepare()
        assert annex.ask("GETCOST") == "COST 100"


def test_bad_parameters_are_reported_by_prepare(testbed: Testbed) -> None:
    with testbed.driver(timeout="never") as annex:
        answer = annex.ask("PREPARE")
    assert answer.startswith("PREPARE-FAILURE timeout=never: ")


# With one


def test_info_describes_the_cluster_and_the_way_to_it(testbed: Testbed) -> None:
    with testbed.driver() as annex:
        annex.prepare()
        assert fields(annex) == {
            "url": testbed.url,
            "tracking": "nodes",
            "cluster": "mycluster",
            "cluster uuid": testbed.cluster.uuid,
            "protocol version": "4",
        }
    shown = text(testbed.client.annex("info", "mycl"))
    for line in (
        f"url: {testbed.url}",
        "tracking: nodes",
        "cluster: mycluster",
        f"cluster uuid: {testbed.cluster.uuid}",
    ):
        assert f"\n{line}\n" in shown
    assert "\nprotocol version: 4\n" in shown


def test_info_about_an_unreachable_cluster_says_so(testbed: Testbed) -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    testbed.keep_token(testbed.cluster.uuid, url, "abc")
    with testbed.driver(url=url) as annex:
        annex.prepare()
        found = fields(annex)
    assert found["url"] == url
    assert "Connection refused" in found["protocol version"]
    url = f"tcp://127.0.0.1:{free_port()}"
    with testbed.driver(url=url) as annex:
        annex.prepare()
        found = fields(annex)
        assert found["url"] == url
        assert "wants a token" in found["protocol version"]
        # It goes on.
        assert annex.ask("GETCOST") == "COST 100"


def test_whereis_names_the_nodes_by_their_descriptions(testbed: Testbed) -> None:
    for node in testbed.cluster.nodes[:2]:
        testbed.client.annex("setpresentkey", KEY, node.uuid, "1")
    with testbed.driver() as annex:
        annex.prepare()
        first, second = sorted(DESCRIPTIONS[:2])
        assert annex.ask(f"WHEREIS {KEY}") == f"WHEREIS-SUCCESS {first}, {second}"
        assert annex.ask("WHEREIS WORM-s4-m1--nowhere") == "WHEREIS-FAILURE"
        assert annex.ask("WHEREIS nonsense") == "WHEREIS-FAILURE"
        # Nobody was asked but the location log.
        assert not any(message.startswith("P2P") for message in annex.debug)
    with testbed.driver(testbed.cluster.nodes[0].uuid) as annex:
        annex.prepare()
        assert annex.ask(f"WHEREIS {KEY}") == "WHEREIS-FAILURE"


def test_presence_has_three_answers(testbed: Testbed, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"here")
    key = "WORM-s4-m1--three-answers"
    with testbed.driver() as annex:
        annex.prepare()
        assert annex.ask(f"CHECKPRESENT {key}") == f"CHECKPRESENT-FAILURE {key}"
        assert annex.ask(f"TRANSFER STORE {key} {tmp_path}/file") == f"TRANSFER-SUCCESS STORE {key}"
        assert annex.ask(f"CHECKPRESENT {key}") == f"CHECKPRESENT-SUCCESS {key}"
    with testbed.driver(url="/no/such/directory") as annex:
        annex.prepare()
        assert annex.ask(f"CHECKPRESENT {key}").startswith(f"CHECKPRESENT-UNKNOWN {key} /no/such/directory: ")


def test_git_annex_treats_unknown_presence_as_unknown(own_testbed: Testbed) -> None:
    key = own_testbed.client.add("f", b"somewhere")
    own_testbed.client.annex("copy", "--to", "mycl", "f")
    with own_testbed.cluster.gateway.unplugged():
        assert own_testbed.client.annex("checkpresentkey", key, "mycl", check=False).returncode == 100
        done = own_testbed.client.annex("fsck", "--from", "mycl", "f", check=False)
        assert done.returncode != 0
        assert own_testbed.present(key) == own_testbed.nodes
    assert own_testbed.client.annex("checkpresentkey", key, "mycl").returncode == 0


def test_the_p2p_exchange_is_shown_with_debug(testbed: Testbed) -> None:
    with testbed.driver() as annex:
        annex.prepare()
        annex.ask(f"CHECKPRESENT {KEY}")
    assert annex.debug == [
        f"P2P < AUTH-SUCCESS {testbed.cluster.uuid}",
        "P2P > VERSION 4",
        "P2P < VERSION 4",
        f"P2P > CHECKPRESENT {KEY}",
        "P2P < FAILURE",
    ]


def test_one_connection_serves_one_request_after_another(testbed: Testbed, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"here")
    key = "WORM-s4-m1--again"
    with testbed.driver() as annex:
        annex.prepare()
        for _ in range(3):
            assert annex.ask(f"TRANSFER STORE {key} {tmp_path}/file") == f"TRANSFER-SUCCESS STORE {key}"
            assert annex.ask(f"TRANSFER RETRIEVE {key} {tmp_path}/back") == f"TRANSFER-SUCCESS RETRIEVE {key}"
            assert annex.ask(f"REMOVE {key}") == f"REMOVE-SUCCESS {key}"
    assert [message for message in annex.debug if "AUTH" in message] == [f"P2P < AUTH-SUCCESS {testbed.cluster.uuid}"]


# Of other kinds of git-annex


def test_an_older_git_annex_offers_no_extensions(testbed: Testbed, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"here")
    key = "WORM-s4-m1--older"
    with testbed.driver() as annex:
        assert annex.ask("PREPARE") == "PREPARE-SUCCESS"
        assert annex.ask(f"TRANSFER STORE {key} {tmp_path}/file") == f"TRANSFER-SUCCESS STORE {key}"
        assert annex.ask(f"REMOVE {key}") == f"REMOVE-SUCCESS {key}"
        assert annex.info == []
    with Driver(testbed.client, testbed.cluster.uuid, {"url": testbed.url, "encryption": "none"}) as annex:
        answer = annex.ask("INITREMOTE")
        # The remote's name is in its parameters, then.
        assert "git annex initremote cluster --sameas=" in answer


def test_extensions_are_only_accepted_where_they_are_offered(testbed: Testbed) -> None:
    with testbed.driver() as annex:
        assert annex.ask("EXTENSIONS INFO ASYNC UNKNOWN") == "EXTENSIONS INFO ASYNC"
    with testbed.driver() as annex:
        assert annex.ask("EXTENSIONS SOMETHING") == "EXTENSIONS"
    with testbed.driver() as annex:
        assert annex.ask("EXTENSIONS") == "EXTENSIONS"


@pytest.mark.parametrize("line", ["CHECKPRESENT", "REMOVE ", "TRANSFER STORE", "TRANSFER", "PREPARE now"])
def test_a_malformed_request_is_an_error_and_ends_the_program(testbed: Testbed, line: str) -> None:
    with testbed.driver() as annex:
        annex.prepare()
        assert annex.ask(line).startswith("ERROR ")
        assert annex.read() == ""
        assert annex.process.wait(20) == 0


@pytest.mark.parametrize("line", ["", "NONSENSE", "J 1 PREPARE", "checkpresent-success"])
def test_an_unknown_request_is_answered_as_unsupported(testbed: Testbed, line: str) -> None:
    with testbed.driver() as annex:
        assert annex.ask(line) == "UNSUPPORTED-REQUEST"
        annex.prepare()


def test_an_error_from_git_annex_ends_the_program(testbed: Testbed) -> None:
    with testbed.driver() as annex:
        annex.prepare()
        assert annex.ask("ERROR out of bananas").startswith("ERROR ")
        assert annex.read() == ""
        assert annex.process.wait(20) == 0


@pytest.mark.parametrize("jobs", [False, True], ids=["one at a time", "jobs"])
def test_end_of_input_instead_of_an_answer_ends_the_program(testbed: Testbed, jobs: bool) -> None:
    with testbed.driver() as annex:
        if jobs:
            annex.ask("EXTENSIONS ASYNC")
        annex.say("J 1 PREPARE" if jobs else "PREPARE")
        assert annex.read().endswith("GETUUID")
        annex.hang_up(within=20)


def test_a_malformed_answer_is_an_error(testbed: Testbed) -> None:
    with testbed.driver() as annex:
        annex.say("PREPARE")
        assert annex.read() == "GETUUID"
        annex.say("BANANA 7")
        assert annex.answer().startswith("ERROR ")


def test_started_by_hand_on_a_terminal_it_explains_itself(testbed: Testbed) -> None:
    """Somebody may start it by hand to see what it is."""
    line = "import pty, sys; sys.exit(pty.spawn(['git-annex-remote-cluster']) >> 8)"
    done = testbed.environment.run(sys.executable, "-c", line, check=False)
    assert done.returncode == 2
    assert "git-annex starts this program by itself" in text(done)


# Tokens


def test_a_token_is_never_written_to_the_git_annex_branch(own_testbed: Testbed) -> None:
    node = own_testbed.cluster.nodes[0]
    with serve_p2p(node) as (path, token):
        url, env = f"unix:{path}", {"CLUSTER_REMOTE_TOKEN": token}
        with own_testbed.driver(node.uuid, env=env, url=url, embedcreds="yes") as annex:
            answer = annex.ask("INITREMOTE")
    assert answer.startswith("INITREMOTE-FAILURE ")
    assert "embedcreds=no" in answer
    assert not annex.credentials
    assert not (own_testbed.client.path / ".git/annex/creds").exists()


def test_a_token_that_cannot_be_stored_is_an_error(own_testbed: Testbed) -> None:
    node = own_testbed.cluster.nodes[0]
    (own_testbed.client.path / ".git/annex/creds").write_text("in the way")
    with serve_p2p(node) as (path, token):
        with own_testbed.driver(node.uuid, env={"CLUSTER_REMOTE_TOKEN": token}, url=f"unix:{path}") as annex:
            answer = annex.ask("INITREMOTE")
        assert answer.startswith("INITREMOTE-FAILURE ")
        assert "/creds/" in answer
        assert "cannot be written: " in answer
        assert token not in answer
        with own_testbed.driver(node.uuid, url=f"unix:{path}") as annex:
            annex.prepare()
            answer = annex.ask(f"CHECKPRESENT {KEY}")
        assert answer.startswith(f"CHECKPRESENT-UNKNOWN {KEY} ")
        assert "cannot be read: " in answer


def test_initremote_works_with_a_git_annex_that_does_not_give_the_remotes_name(testbed: Testbed) -> None:
    with testbed.driver() as annex:
        annex.names_remotes = False
        annex.prepare()
        assert annex.ask("GETCOST").startswith("COST ")
