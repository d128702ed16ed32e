"""check: what nodes say they have against what the location log says, and recording what is true."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.ailing import empty, on_a_terminal, stock, store
from tests.cli.command import cluster_remote, told
from tests.remote.testbed import Testbed, initremote, make_testbed
from tests.support.environment import Environment
from tests.support.forked import popen_forked
from tests.support.processes import wait_until
from tests.support.repositories import DESCRIPTIONS, make_repository
from tests.support.slow import only_in_all


@pytest.fixture(scope="module")
def in_order(make_environment: Callable[[], Environment]) -> Testbed:
    """A cluster with contents on every node, that the tests of this file leave as it is."""
    testbed = make_testbed(make_environment())
    store(testbed, ["one", "two", "below/three", "below/deeper/four"])
    return testbed


def counts(said: dict[str, Any], what: str) -> list[int]:
    """A number for each node, in the order of the nodes' names."""
    return [node[what] for node in sorted(said["nodes"], key=lambda node: node["name"])]


def found(said: dict[str, Any]) -> dict[str, tuple[list[str], list[str]]]:
    """Missing and unlogged, by key."""
    return {each["key"]: (each["missing"], each["unlogged"]) for each in said["findings"]}


def test_a_correct_log_is_reported_as_correct(in_order: Testbed) -> None:
    said = told(in_order.client, "check", "mycl", "--all")
    assert said["well"]
    assert (said["findings"], said["problems"], said["keys"]) == ([], [], 4)
    assert (counts(said, "present"), counts(said, "missing"), counts(said, "unknown")) == ([4] * 3, [0] * 3, [0] * 3)
    assert "The location log is right." in cluster_remote(in_order.client, "check", "mycl", "--all").out


@pytest.mark.parametrize(
    ("arguments", "where", "keys"),
    [
        ((), ".", 4),
        ((), "below", 2),
        (("one", "below/deeper"), ".", 2),
        (("deeper/four", "../two"), "below", 2),
        ((".",), "below/deeper", 1),
        (("--all",), "below", 4),
    ],
)
def test_paths_are_relative_to_the_working_directory(
    in_order: Testbed, arguments: tuple[str, ...], where: str, keys: int
) -> None:
    assert told(in_order.client, "check", "mycl", *arguments, cwd=in_order.client.path / where)["keys"] == keys


def test_single_keys_can_be_checked(in_order: Testbed) -> None:
    keys = [in_order.client.key("one"), in_order.client.key("two")]
    said = told(in_order.client, "check", "mycl", "--key", keys[0], "--key", keys[1])
    assert (said["keys"], counts(said, "present")) == (2, [2] * 3)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nothing",), 1, "there is no file 'nothing'"),
        (("plain",), 1, "not an annexed file"),
        (("--key", "nonsense"), 2, "not a key"),
        (("--all", "one"), 2, "--all"),
        (("--jobs", "0"), 2, "--jobs"),
    ],
)
def test_arguments_that_cannot_be_checked_are_explained(
    in_order: Testbed, arguments: tuple[str, ...], code: int, words: str
) -> None:
    in_order.client.write("plain", b"not annexed")
    done = cluster_remote(in_order.client, "check", "mycl", "--json", *arguments, code=code)
    assert words in done.err
    assert json.loads(done.out)["exit_code"] == code


@pytest.mark.slow
def test_each_discrepancy_is_named_and_only_fix_records_it(own_testbed: Testbed) -> None:
    client, (first, second, third) = own_testbed.client, own_testbed.cluster.nodes
    keys = store(own_testbed, ["one", "two", "three"])
    first.lose_object(keys["one"])
    client.annex("setpresentkey", keys["two"], second.uuid, "0")
    empty(third)
    said = told(client, "check", "mycl", "--all", code=1)
    expected = {
        keys["one"]: (sorted([first.uuid, third.uuid]), []),
        keys["two"]: ([third.uuid], [second.uuid]),
        keys["three"]: ([third.uuid], []),
    }
    assert found(said) == expected
    assert {(problem["kind"], problem["node"]) for problem in said["problems"]} == {
        ("content-missing", first.uuid),
        ("content-unlogged", second.uuid),
        ("content-missing", third.uuid),
    }
    before = {name: own_testbed.present(key) for name, key in keys.items()}
    assert before == {"one": own_testbed.nodes, "two": {first.uuid, third.uuid}, "three": own_testbed.nodes}

    shown = cluster_remote(client, "check", "mycl", "one", "two", code=1).out
    assert f"one: not on {DESCRIPTIONS[0]}, {DESCRIPTIONS[2]}" in shown.replace(
        f"{DESCRIPTIONS[2]}, {DESCRIPTIONS[0]}", f"{DESCRIPTIONS[0]}, {DESCRIPTIONS[2]}"
    )
    assert f"on {DESCRIPTIONS[1]}, but not in the location log" in shown
    assert "cluster-remote check mycl --fix one two" in shown
    assert own_testbed.present(keys["one"]) == own_testbed.nodes

    fixed = told(client, "check", "mycl", "--all", "--fix")
    assert found(fixed) == expected
    assert all(each["recorded"] for each in fixed["findings"])
    assert (fixed["well"], fixed["recorded"]) == (True, 3)
    assert own_testbed.present(keys["one"]) == {second.uuid}
    assert own_testbed.present(keys["two"]) == {first.uuid, second.uuid}
    assert own_testbed.present(keys["three"]) == {first.uuid, second.uuid}
    assert told(client, "check", "mycl", "--all")["findings"] == []


def test_an_unreachable_node_is_unknown_and_nothing_is_recorded_for_it(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["one", "two"])
    first, second, _ = own_testbed.cluster.nodes
    first.lose_object(keys["one"])
    with second.unplugged():
        said = told(own_testbed.client, "check", "mycl", "--all", "--fix", code=1)
        shown = cluster_remote(own_testbed.client, "check", "mycl", code=1).out
    assert (counts(said, "unknown"), counts(said, "missing")) == ([0, 2, 0], [1, 0, 0])
    assert [(problem["kind"], problem["node"]) for problem in said["problems"]] == [("node-unreachable", second.uuid)]
    assert own_testbed.present(keys["one"]) == own_testbed.nodes - {first.uuid}
    assert f"{DESCRIPTIONS[1]} cannot be reached" in shown
    assert str(second.path) in shown


def test_check_with_no_node_answering_exits_as_unreachable(own_testbed: Testbed) -> None:
    store(own_testbed, ["one"])
    with own_testbed.cluster.gateway.unplugged():
        said = told(own_testbed.client, "check", "mycl", "--all", code=3)
    assert counts(said, "unknown") == [1] * 3


@pytest.mark.slow
def test_too_few_copies_are_reported_with_the_remedy(own_testbed: Testbed) -> None:
    client, (first, second, _) = own_testbed.client, own_testbed.cluster.nodes
    keys = store(own_testbed, ["here"]) | store(own_testbed, ["elsewhere"], keep=False)
    client.annex("numcopies", "4")
    said = told(client, "check", "mycl", code=1)
    assert (said["numcopies"], said["few"]) == (4, 1)
    (finding,) = said["findings"]
    assert (finding["file"], finding["copies"], finding["few"]) == ("elsewhere", 3, True)
    # All nodes have it, so nothing can be brought there.
    (problem,) = said["problems"]
    assert problem["kind"] == "few-copies"
    assert "git annex numcopies" in problem["remedy"]
    assert not any("repair" in command for command in problem["commands"])

    client.annex("numcopies", "3")
    assert told(client, "check", "mycl")["few"] == 0
    # What an untrusted repository has does not count.
    client.annex("untrust", second.uuid)
    said = told(client, "check", "mycl", code=1)
    assert [(each["file"], each["copies"]) for each in said["findings"]] == [("elsewhere", 2)]
    first.lose_object(keys["elsewhere"])
    said = told(client, "check", "mycl", "--fix", code=1)
    assert [(each["file"], each["copies"]) for each in said["findings"]] == [("elsewhere", 1)]
    assert said["problems"][0]["commands"] == ["cluster-remote repair mycl"]


@pytest.mark.slow
def test_content_dropped_everywhere_is_a_problem_only_for_a_named_file(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["dropped"], keep=False)
    own_testbed.client.annex("drop", "--force", "--from", "mycl", "dropped")
    assert own_testbed.present(keys["dropped"]) == set()
    said = told(own_testbed.client, "check", "mycl", "--all")
    assert (said["gone"], said["findings"]) == (1, [])
    said = told(own_testbed.client, "check", "mycl", "dropped", code=1)
    assert [(each["file"], each["copies"]) for each in said["findings"]] == [("dropped", 0)]
    assert [problem["kind"] for problem in said["problems"]] == ["lost"]
    # Of what was declared dead nobody wants to hear any more.
    own_testbed.client.annex("dead", "--key", keys["dropped"])
    assert told(own_testbed.client, "check", "mycl", "dropped")["findings"] == []


@pytest.mark.slow
def test_content_found_on_a_node_after_being_dropped_everywhere_is_named(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["dropped"], keep=False)
    for node in own_testbed.cluster.nodes:
        own_testbed.client.annex("setpresentkey", keys["dropped"], node.uuid, "0")
    said = told(own_testbed.client, "check", "mycl", "--all", "--fix")
    assert found(said) == {keys["dropped"]: ([], sorted(own_testbed.nodes))}
    assert own_testbed.present(keys["dropped"]) == own_testbed.nodes


@pytest.mark.slow
def test_odd_names_and_keys_are_checked_unchanged(own_testbed: Testbed) -> None:
    client, first = own_testbed.client, own_testbed.cluster.nodes[0]
    names: list[str | bytes] = ["with space", "-dash", "per%cent", b"not utf-8 \xff", "new\u2028line", 'quo"te']
    keys = [client.add(name, b"odd " + os.fsencode(name), backend="SHA256E") for name in names]
    keys.append(client.add("worm", b"worm", backend="WORM"))
    client.annex("copy", "--quiet", "--to", "mycl", ".")
    for key in keys:
        first.lose_object(key)
    said = told(client, "check", "mycl", code=1)
    # JSON keeps what is not UTF-8 as lone surrogates.
    assert {each["file"] for each in said["findings"]} == {*map(os.fsdecode, names), "worm"}
    said = told(client, "check", "mycl", "--", *map(os.fsdecode, names), code=1)
    assert [each["file"] for each in said["findings"]] == [*map(os.fsdecode, names)]
    assert told(client, "check", "mycl", "--all", "--fix")["recorded"] == len(names) + 1
    assert own_testbed.present(keys[3]) == own_testbed.nodes - {first.uuid}


@pytest.mark.slow
def test_many_keys_are_checked_over_several_sessions_without_mixing_answers(own_testbed: Testbed) -> None:
    keys = stock(own_testbed, 300)
    gone = {0: keys[5::30], 1: keys[7::30], 2: keys[::100]}
    for number, lost in gone.items():
        for key in lost:
            own_testbed.cluster.nodes[number].lose_object(key)
    for jobs in ("1", "3"):
        said = told(own_testbed.client, "check", "mycl", "--all", "--jobs", jobs, code=1)
        assert said["keys"] == 300
        assert counts(said, "missing") == [10, 10, 3]
        for number, lost in gone.items():
            uuid = own_testbed.cluster.nodes[number].uuid
            assert {each["key"] for each in said["findings"] if uuid in each["missing"]} == set(lost)
    shown = cluster_remote(own_testbed.client, "check", "mycl", "--all", code=1).out
    assert re.search(r"first disk \(attic\) +290 +10 +0 +0", shown)


def test_the_text_output_shows_the_first_findings_and_counts_the_rest(own_testbed: Testbed) -> None:
    stock(own_testbed, 70)
    empty(own_testbed.cluster.nodes[0])
    done = cluster_remote(own_testbed.client, "check", "mycl", "--all", code=1)
    assert done.out.count("though the location log says so") == 50
    assert "and 20 more" in done.out
    assert len(told(own_testbed.client, "check", "mycl", "--all", code=1)["findings"]) == 70


def test_encrypted_contents_are_left_to_git_annex(in_order: Testbed) -> None:
    initremote(
        in_order.client, "crypt", f"url={in_order.url}", "encryption=shared", "tracking=remote",
        f"cluster={in_order.cluster.uuid}", private=False,
    )  # fmt: skip
    for command in ("check", "repair"):
        done = cluster_remote(in_order.client, command, "crypt", code=2)
        assert "git annex fsck --fast --from crypt" in done.err


def test_without_a_server_the_nodes_are_asked_directly(own_testbed: Testbed) -> None:
    gateway, first = own_testbed.cluster.gateway, own_testbed.cluster.nodes[0]
    initremote(gateway, "own", sameas=own_testbed.cluster.uuid)
    key = gateway.add("one", b"one")
    gateway.annex("copy", "--quiet", "--to", "own", "one")
    first.lose_object(key)
    said = told(gateway, "check", "own", "one", "--fix")
    assert found(said) == {key: ([first.uuid], [])}
    assert gateway.locations(key) & own_testbed.nodes == own_testbed.nodes - {first.uuid}


def test_progress_is_shown_only_on_a_terminal(in_order: Testbed) -> None:
    for arguments in (("--all",), ()):
        assert cluster_remote(in_order.client, "check", "mycl", *arguments).err == ""
        argv = ("cluster-remote", "check", "mycl", *arguments)
        shown = on_a_terminal(in_order.environment, in_order.client.path, *argv)
        assert "node2" in shown
        assert re.search(r"[0-4]/4\b", shown)


# What every command promises


def test_an_unknown_remote_is_wrong_usage_and_the_known_ones_are_named(in_order: Testbed) -> None:
    for command in ("check", "repair", "status"):
        done = cluster_remote(in_order.client, command, "other", code=2)
        assert "'other' is not a cluster remote" in done.err
        assert "mycl" in done.err


def test_a_bare_address_has_no_location_log_to_compare_with(in_order: Testbed) -> None:
    for command in ("check", "repair"):
        done = cluster_remote(in_order.client, command, in_order.url, code=2)
        assert "cluster-remote setup" in done.err


def test_check_outside_a_repository_says_so_by_its_exit_code(environment: Environment) -> None:
    for command in ("check", "repair", "status"):
        assert "git annex init" in cluster_remote(environment, command, "mycl", code=4).err


def test_a_closed_pipe_is_not_reported(in_order: Testbed) -> None:
    for command in ("check", "repair", "status"):
        for options in ((), ("--json",)):
            reading, writing = os.pipe()
            os.close(reading)
            with popen_forked(
                in_order.environment, "cluster-remote", command, "mycl", *options,
                cwd=in_order.client.path, stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.PIPE,
            ) as process:  # fmt: skip
                os.close(writing)
                _, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (1, b""), (command, options)


@pytest.fixture
def waiting(in_order: Testbed) -> Iterator[Path]:
    """Nodes that take for ever, so that there is something to interrupt. A file that is there once one was asked."""
    file = in_order.environment.directory / "waiting"
    shell = in_order.environment.program("git-annex-shell", f"#!/bin/sh\ntouch {file}\nexec sleep 600\n")
    yield file
    shell.unlink()
    file.unlink()


@pytest.mark.parametrize("command", ["check", *only_in_all("repair", "status")])
def test_an_interrupt_ends_check_with_one_line_and_leaves_no_process(
    in_order: Testbed, waiting: Path, command: str
) -> None:
    process = popen_forked(
        in_order.environment, "cluster-remote", command, "mycl", cwd=in_order.client.path, stderr=subprocess.PIPE
    )
    assert wait_until(waiting.exists, 30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"cluster-remote: interrupted\n")
    in_order.environment.assert_no_process_left()


def test_a_fetched_but_unmerged_branch_is_taken_into_account(in_order: Testbed) -> None:
    other = in_order.cluster.clone("other")
    initremote(other, "mycl", f"url={in_order.url}", sameas=in_order.cluster.uuid)
    other.git("remote", "add", "desk", in_order.client.path)
    other.git("fetch", "--quiet", "desk")
    assert told(other, "check", "mycl", "--all")["keys"] == 4


def test_a_repository_that_knows_no_node_is_told_to_fetch(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "alone", "alone")
    done = cluster_remote(repository, "check", "mycl", code=2)
    assert "there is none yet" in done.err


@pytest.mark.parametrize("serverless", [True, *only_in_all(False)])
def test_content_check_finds_damaged_copies_records_them_with_fix_and_moves_them_aside_on_request(
    own_testbed: Testbed, serverless: bool
) -> None:
    keys = store(own_testbed, ["one", "two"])
    where, name = own_testbed.client, "mycl"
    if serverless:
        where, name = own_testbed.cluster.gateway, "own"
        initremote(where, name, sameas=own_testbed.cluster.uuid)
        where.annex("merge", "--quiet")
    worm = where.add("worm", b"worm", backend="WORM")
    where.annex("copy", "--quiet", "--to", name, "worm")
    first = own_testbed.cluster.nodes[0]
    first.damage_object(keys["one"], b"the content of oNe\n")
    selection = ("--key", keys["one"], "--key", keys["two"], "--key", worm)
    assert told(where, "check", name, *selection, code=None)["keys"] == 3
    said = told(where, "check", name, *selection, "--content", code=1)
    assert {each["key"]: each["damaged"] for each in said["findings"] if each["damaged"]} == {keys["one"]: [first.uuid]}
    assert (said["read"], said["unverifiable"]) == (6, 3)
    assert first.uuid in where.locations(keys["one"])
    fixed = told(where, "check", name, *selection, "--content", "--fix", code=1)
    assert ("damaged", first.uuid) in [(problem["kind"], problem["node"]) for problem in fixed["problems"]]
    assert first.uuid not in where.locations(keys["one"])
    assert first.has_object(keys["one"])
    # Without a look into it, the node has it.
    told(where, "check", name, *selection, "--fix", code=None)
    moved = told(where, "check", name, *selection, "--content", "--fix", "--move-aside", code=None)
    assert [each["moved"] for each in moved["findings"] if each["damaged"]] == [[first.uuid]]
    assert not first.has_object(keys["one"])
    assert (first.path / ".git/annex/bad" / keys["one"]).exists()
    assert told(where, "repair", name, "--key", keys["one"])["well"]
    assert first.object_bytes(keys["one"]) == b"the content of one\n"


@pytest.mark.slow
def test_an_interrupted_content_check_resumes(own_testbed: Testbed) -> None:
    client = own_testbed.client
    keys = store(own_testbed, ["one", "two"])
    verified = client.path / ".git/cluster-remote/verified" / own_testbed.cluster.uuid
    verified.parent.mkdir(parents=True)
    verified.write_text(f"{own_testbed.cluster.nodes[0].uuid} {keys['one']}\n")
    assert told(client, "check", "mycl", "--content", "--continue")["read"] == 5
    assert not verified.exists()
    assert told(client, "check", "mycl", "--content")["read"] == 6


def test_a_single_cluster_need_not_be_named(in_order: Testbed) -> None:
    assert told(in_order.client, "check")["keys"] == 4
    assert told(in_order.client, "check", "one", "below")["keys"] == 3
    assert told(in_order.client, "repair", "one", "--dry-run")["keys"] == 1
    assert "not a cluster remote" in cluster_remote(in_order.client, "check", "nowhere", code=2).err


@pytest.mark.slow
def test_a_full_device_on_stdout_is_reported_in_one_line(in_order: Testbed) -> None:
    for line in ("check mycl", "status mycl", "doctor mycl --json"):
        done = in_order.environment.run(
            "bash", "-c", f"cluster-remote {line} > /dev/full", cwd=in_order.client.path, check=False
        )
        assert (done.returncode, done.stderr.count(b"\n"), b"No space left" in done.stderr) == (1, 1, True), done
