"""trace shows, saves and draws the conversations of a command's cluster remotes without changing them."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cluster_remote.diagnosis.conversation import (
    BadTrace,
    Ending,
    Heading,
    TracedMessage,
    TraceFormatter,
    parse_message,
    read_ending,
    read_heading,
    write_ending,
    write_heading,
    write_message,
)
from cluster_remote.diagnosis.drawing import as_svg, as_text, lay_out
from tests.cli.command import cluster_remote, told
from tests.cli.outcomes import outcome
from tests.remote.testbed import Testbed
from tests.support.environment import Environment
from tests.support.forked import popen_forked
from tests.support.peers import Expect, ScriptedPeer, Send, opening
from tests.support.processes import wait_until
from tests.support.repositories import DESCRIPTIONS, Repository, locked, make_cluster
from tests.support.sockets import serve_p2p

TOKEN = "t" * 26 + "2" * 26


def spoken(shown: str) -> list[str]:
    """Return the messages of the text output: direction and message, without times."""
    lines = (re.fullmatch(r" *[0-9.]+ s  #\d+(?: job \S+)? ([→←].*)", line) for line in shown.splitlines())
    return [line[1] for line in lines if line]


# Real conversations


def test_an_upload_is_traced_message_by_message(testbed: Testbed) -> None:
    content = b"traced up"
    key = testbed.client.add("traced up", content)
    done = cluster_remote(testbed.client, "trace", "--", "git", "annex", "copy", "--to", "mycl", "traced up")
    nodes = " ".join(sorted(testbed.nodes))
    who = ", ".join(
        DESCRIPTIONS[number] for number, _ in sorted(enumerate(testbed.cluster.nodes), key=lambda n: n[1].uuid)
    )
    assert spoken(done.err) == [
        f"← AUTH-SUCCESS {testbed.cluster.uuid}  (cluster {testbed.cluster.name})",
        "→ VERSION 4",
        "← VERSION 4",
        f"→ CHECKPRESENT {key}",
        "← FAILURE",
        f"→ PUT  {key}",
        "← PUT-FROM 0",
        f"→ DATA {len(content)}  + {len(content)} bytes of content",
        "→ VALID",
        f"← SUCCESS-PLUS {nodes}  ({who})",
    ]
    assert f"#1 is cluster {testbed.cluster.name} at {testbed.url} (process " in done.err
    assert "copy traced up" in done.out
    assert testbed.present(key) == testbed.nodes


def test_a_partial_drop_shows_which_nodes_removed_it_and_keeps_the_exit_code(testbed: Testbed) -> None:
    key = testbed.client.add("traced drop", b"traced drop")
    testbed.client.annex("copy", "--to", "mycl", "traced drop")
    with locked(testbed.cluster.nodes[1], key):
        done = cluster_remote(
            testbed.client, "trace", "--", "git", "annex", "drop", "--from", "mycl", "traced drop", code=1
        )
    said = spoken(done.err)
    assert f"→ REMOVE {key}" in said
    partial = next(line for line in said if line.startswith("← FAILURE-PLUS"))
    assert DESCRIPTIONS[0] in partial
    assert DESCRIPTIONS[1] not in partial


def test_a_resumed_download_shows_its_offset(testbed: Testbed) -> None:
    content = bytes(range(256)) * 100
    key = testbed.client.add("traced down", content)
    testbed.client.annex("copy", "--to", "n1", "traced down")
    testbed.client.annex("drop", "--force", "traced down")
    testbed.client.leave_partial(key, content[:600])
    done = cluster_remote(testbed.client, "trace", "--", "git", "annex", "get", "--from", "n1", "traced down")
    said = spoken(done.err)
    at = said.index(f"→ GET 600  {key}")
    rest = len(content) - 600
    assert said[at + 1 : at + 4] == [f"← DATA {rest}  + {rest} bytes of content", "← VALID", "→ SUCCESS"]
    assert testbed.client.object_bytes(key) == content


def test_jobs_and_their_sessions_are_distinguished(testbed: Testbed) -> None:
    names = [f"traced job {number}" for number in range(4)]
    for name in names:
        testbed.client.add(name, name.encode())
    said = told(testbed.client, "trace", "--", "git", "annex", "copy", "-J2", "--to", "n1", *names)
    messages = said["messages"]
    # git-annex numbers its jobs as it likes.
    jobs = {message["job"] for message in messages}
    assert None not in jobs
    assert len(jobs) >= 2
    assert {message["session"] for message in messages} == {1, 2}
    stored = [message for message in messages if message["message"].startswith("DATA")]
    assert [message["data"] for message in stored] == [len("traced job 0")] * 4
    assert all(message["size"] == len(message["message"]) + 1 for message in messages)
    times = [message["time"] for message in messages]
    assert times == sorted(times)
    assert said["started"] <= times[0]


def test_without_a_server_every_node_is_a_session_of_its_own(environment: Environment) -> None:
    cluster = make_cluster(environment, environment.directory)
    gateway = cluster.gateway
    cluster_remote(gateway, "setup", "all", "--cluster", cluster.name)
    gateway.add("to all", b"to all of them")
    said = told(gateway, "trace", "--", "git", "annex", "copy", "--to", "all", "to all")
    servers = {message["server"] for message in said["messages"] if message["message"].startswith("PUT ")}
    assert servers == {node.uuid for node in cluster.nodes}
    assert {said["names"][uuid] for uuid in servers} == set(DESCRIPTIONS[:3])


def test_no_token_is_shown_or_kept(environment: Environment, tmp_path: Path) -> None:
    environment.run("git", "init", "--quiet", "served")
    repository = Repository(environment.directory / "served", environment)
    repository.annex("init", "--quiet", "served")
    key = repository.add("file", b"behind a token\n")
    with serve_p2p(repository) as (path, token):
        command = ("cluster-remote", "present", f"unix:{path}", key)
        done = cluster_remote(
            environment, "trace", "--diagram", "--save", tmp_path / "trace", "--svg", tmp_path / "svg", "--", *command,
            env={"CLUSTER_REMOTE_TOKEN": token},
        )  # fmt: skip
    assert "→ AUTH" in "\n".join(spoken(done.err))
    assert "[token]" in done.err
    kept = (tmp_path / "trace").read_text() + (tmp_path / "svg").read_text() + done.out + done.err
    assert token not in kept


def test_a_token_repeated_by_the_peer_is_not_shown(environment: Environment, tmp_path: Path) -> None:
    key = "WORM-s1--x"
    script = [
        *opening("00000000-0000-4000-8000-000000000001", token=TOKEN),
        Expect(f"CHECKPRESENT {key}".encode()),
        Send(f"ERROR you said {TOKEN}, did you\n".encode()),
    ]
    with ScriptedPeer(script, unix=tmp_path / "socket") as peer:
        done = cluster_remote(
            environment, "trace", "--save", tmp_path / "trace", "--",
            "cluster-remote", "present", f"unix:{peer.address}", key,
            env={"CLUSTER_REMOTE_TOKEN": TOKEN}, code=1,
        )  # fmt: skip
    assert "← ERROR you said [token], did you" in spoken(done.err)
    assert TOKEN not in done.out + done.err + (tmp_path / "trace").read_text()


def test_a_trace_that_cannot_be_written_does_not_affect_the_transfer(testbed: Testbed) -> None:
    key = testbed.client.add("untraceable", b"untraceable")
    testbed.client.annex("copy", "--to", "n1", "untraceable", env={"CLUSTER_REMOTE_TRACE": "/nowhere/at/all"})
    assert testbed.cluster.nodes[0].has_object(key)


# The command


def test_the_commands_output_is_kept_and_goes_to_stderr_with_json(testbed: Testbed) -> None:
    command = ("sh", "-c", "echo said; exit 7")
    done = cluster_remote(testbed.client, "trace", "--", *command, code=7)
    assert done.out == "said\n"
    assert "no messages" in done.err
    done = cluster_remote(testbed.client, "trace", "--json", "--", *command, code=7)
    assert outcome("trace", done.out)["exit_code"] == 7
    assert "said\n" in done.err


def test_a_command_that_cannot_be_run_gets_the_shells_exit_code(testbed: Testbed) -> None:
    assert "no-such" in cluster_remote(testbed.client, "trace", "--", "no-such", "x", code=127).err
    testbed.client.write("plain text", b"text").chmod(0o644)
    assert "cannot run" in cluster_remote(testbed.client, "trace", "--", "./plain text", "x", code=126).err
    assert cluster_remote(testbed.client, "trace", "--", "sh", "-c", "kill -TERM $$", code=143).out == ""


@pytest.mark.parametrize("option", ["--save", "--svg"])
def test_an_unwritable_trace_file_is_refused_before_the_command_runs(testbed: Testbed, option: str) -> None:
    done = cluster_remote(testbed.client, "trace", option, "/nowhere/file", "--", "touch", "touched", code=2)
    assert f"{option} /nowhere/file" in done.err
    assert not (testbed.client.path / "touched").exists()


def test_an_interrupt_ends_the_command_and_keeps_the_trace(testbed: Testbed, tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f"cluster-remote ping n1; touch {started}; exec sleep 60"
    with popen_forked(
        testbed.environment, "cluster-remote", "trace", "--save", tmp_path / "trace", "--", "sh", "-c", script,
        cwd=testbed.client.path, stdin=-3, stderr=-1,
    ) as process:  # fmt: skip
        assert wait_until(started.exists, 30)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    kept = (tmp_path / "trace").read_text().splitlines()
    assert json.loads(kept[-1]) == {"exit_code": 130}
    assert len(kept) > 3


def test_nothing_is_left_in_the_temporary_directory(testbed: Testbed) -> None:
    temporary = Path(testbed.environment.env["TMPDIR"])
    before = set(temporary.iterdir())
    cluster_remote(testbed.client, "trace", "--", "cluster-remote", "ping", "n1")
    assert set(temporary.iterdir()) == before


# Saved traces


def test_a_saved_trace_replays_the_live_one(testbed: Testbed, tmp_path: Path) -> None:
    testbed.client.add("kept", b"kept for later")
    saved = tmp_path / "saved"
    live = cluster_remote(
        testbed.client, "trace", "--save", saved, "--diagram", "--", "git", "annex", "copy", "--to", "mycl", "kept"
    )
    again = cluster_remote(testbed.environment, "trace", saved, "--diagram")
    assert again.out.strip() in live.err
    assert "SUCCESS-PLUS" in again.out
    said = told(testbed.environment, "trace", saved)
    assert said["command"] == ["git", "annex", "copy", "--to", "mycl", "kept"]
    assert said["exit_code"] == 0
    assert [message["message"].split(" ")[0] for message in said["messages"]][-1] == "SUCCESS-PLUS"


def test_a_file_that_is_not_a_trace_is_wrong_usage(testbed: Testbed, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("something else\n")
    assert "neither a saved trace" in cluster_remote(testbed.client, "trace", file, code=2).err
    file.write_text(write_heading(Heading(("x",), 1.0)) + "{broken\n")
    assert "not a line of a trace" in cluster_remote(testbed.client, "trace", file, code=2).err
    file.write_text('{"cluster-remote-trace": 99, "command": [], "names": {}, "started": 1}\n')
    assert "newer format" in cluster_remote(testbed.client, "trace", file, code=2).err


SAID = TracedMessage(
    101.5, 7, 1, "/srv/gw", "00000000-0000-4000-8000-000000000001", "1", True,
    "PUT  SHA256-s3--" + "ab" * 32, 90, None,
)  # fmt: skip
HEADING = Heading(("git", "annex", "copy"), 100.0, {"00000000-0000-4000-8000-000000000001": "the attic"})


def test_written_messages_round_trip() -> None:
    odd = TracedMessage(1e9, 1, 2, "p", None, None, False, "GET 0 caf\udce9 WORM--\udcff", 5, 17)
    assert parse_message(write_message(odd)) == odd
    assert parse_message(write_message(SAID)) == SAID
    assert read_heading(write_heading(HEADING)) == HEADING
    assert read_ending(write_ending(Ending(3))) == Ending(3)
    assert read_ending(write_message(SAID)) is None


@pytest.mark.parametrize(
    "change",
    [{"out": 1}, {"message": None}, {"time": "1"}, {"time": float("nan")}, {"pid": 1e300}, {"peer": 2}, {"size": True}],
)
def test_a_damaged_message_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadTrace):
        parse_message(json.dumps({**json.loads(write_message(SAID)), **change}))


@pytest.mark.parametrize("line", ["", "[]", "3", "null", '"x"', "{}"])
def test_a_line_of_an_unknown_kind_is_refused(line: str) -> None:
    with pytest.raises(BadTrace):
        parse_message(line)
    with pytest.raises(BadTrace):
        read_heading(line)


# Drawing


def exchange(sessions: int) -> list[TracedMessage]:
    """Return a request and its answer in each of so many sessions."""
    return [
        TracedMessage(
            100.0 + number,
            1,
            number,
            f"peer {number}",
            None,
            None,
            out,
            "CHECKPRESENT WORM--a" if out else "SUCCESS",
            9,
            None,
        )
        for number in range(1, sessions + 1)
        for out in (True, False)
    ]


def test_the_diagram_has_an_arrow_per_message_to_its_sessions_line() -> None:
    lines = list(as_text(lay_out(HEADING, exchange(3))))
    arrows = [line for line in lines if "▶" in line or "◀" in line]
    assert len(arrows) == 6
    ends = [line.rindex("▶│") + 1 for line in arrows if "▶" in line]
    starts = [line.index("◀") for line in arrows if "◀" in line]
    assert len(set(ends)) == 3
    assert ends == sorted(ends)
    assert len(set(starts)) == 1
    bare = next(line for line in lines if set(line) == {" ", "│"})
    assert [bare[end] for end in ends] == ["│"] * 3
    assert "git annex copy" in lines[0]


def test_the_diagram_can_be_drawn_in_ascii() -> None:
    text = "\n".join(as_text(lay_out(HEADING, [SAID, *exchange(2)]), plain=True))
    assert text.isascii()
    assert ">|" in text


def test_checksums_are_shortened_in_the_diagram_and_whole_in_the_list() -> None:
    drawn = "\n".join(as_text(lay_out(HEADING, [SAID])))
    assert "SHA256-s3--abababab…" in drawn
    assert "ab" * 32 not in drawn
    told_line = "\n".join(TraceFormatter(HEADING).lines(SAID))
    assert "ab" * 32 in told_line
    assert "#1 is the attic at /srv/gw" in told_line


def test_the_svg_is_well_formed_whatever_the_messages() -> None:
    evil = TracedMessage(
        101.0, 1, 1, "<peer>&\"'", None, None, True, "ERROR <script>alert(1)</script>\x1b[2J\x00\udcff]]>", 9, None
    )
    diagram = lay_out(Heading(("sh", "-c", "<&>\x07"), 100.0), [evil, *exchange(2)])
    text = "\n".join(as_svg(diagram))
    root = ElementTree.fromstring(text.encode("utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    marked = [line for line in root.iter("{http://www.w3.org/2000/svg}line") if line.get("marker-end")]
    assert len(marked) == 5


def test_control_characters_from_a_peer_do_not_reach_the_terminal() -> None:
    evil = TracedMessage(101.0, 1, 1, "peer\x1b[31m", None, "1\x1b[0m", False, "ERROR \x1b]0;title\x07\r\n", 9, None)
    shown = "\n".join([*TraceFormatter(HEADING).lines(evil), *as_text(lay_out(HEADING, [evil]))])
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_the_diagram_says_how_much_it_omits() -> None:
    assert "… 12 more messages not drawn" in list(as_text(lay_out(HEADING, exchange(1), 12)))[-1]
    assert "… 12 more messages not drawn" in "\n".join(as_svg(lay_out(HEADING, exchange(1), 12)))
