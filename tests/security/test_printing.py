"""Every place where text of a peer, a log or a file name is printed: no control character comes out."""

from __future__ import annotations

import html
import io
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import httpcore
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster_remote.cli import check, doctor, drop, failure, get, lock, present, put, repair, serve, status, token
from cluster_remote.cli.execution import _say as say_of_plans
from cluster_remote.cli.execution import execute
from cluster_remote.cli.render import console, emit, say, table
from cluster_remote.diagnosis.checkup import Checkup, Program, Server
from cluster_remote.diagnosis.comparison import Check, Finding, NodeCount
from cluster_remote.diagnosis.conversation import Heading, TracedMessage, TraceFormatter
from cluster_remote.diagnosis.drawing import as_svg, as_text, lay_out
from cluster_remote.diagnosis.problem import Problem
from cluster_remote.diagnosis.repairing import NodeRepair, Repair
from cluster_remote.diagnosis.request import Downloaded, Dropped, Locked, Presence, Uploaded
from cluster_remote.diagnosis.state import ClusterState, NodeState, Status
from cluster_remote.diagnosis.transfer import Transfer
from cluster_remote.gateway import web
from cluster_remote.gateway.gateway import Gateway
from cluster_remote.gateway.slots import Connection
from cluster_remote.lifecycle.runner import Runner
from cluster_remote.lifecycle.steps import Plan
from cluster_remote.p2p.errors import Unreachable
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.text import printable
from cluster_remote.remote.protocol import one_line
from cluster_remote.transport.httpclient import Answer, HttpClient, _reason

ONE = UUID("11111111-2222-4333-8444-555555555555")
# What a terminal obeys: escape sequences, C1 controls in both encodings, turned text, the end of a line.
EVIL = [
    "\x1b]0;PWNED\x07",
    "\x1b[31m",
    "\x9b31m",
    "\udc9b",
    "\u202e",
    "\r",
    "\n",
    "\b",
    "\x00",
    "\x7f",
    "a",
    " ",
    "[bold]",
]
hostile = st.lists(st.sampled_from(EVIL) | st.characters(), min_size=1, max_size=8).map("".join)


def _key(name: str) -> Key:
    return Key(f"WORM--{name}")


st.register_type_strategy(str, hostile)
st.register_type_strategy(int, st.integers(0, 10**10))
st.register_type_strategy(float, st.floats(0, 10**9))
st.register_type_strategy(UUID, st.just(ONE))
st.register_type_strategy(
    Key, st.text("\x1b[31m\x07\x9b\udc9b\u202ea", min_size=1).map(lambda name: Key(f"WORM--{name}"))
)


def few(kind: type, **fields: type) -> st.SearchStrategy[Any]:
    """Values of a class in which these fields hold one thing each; more would only take longer."""
    return st.builds(kind, **{name: st.tuples(st.from_type(each)) for name, each in fields.items()})


CLUSTER = few(ClusterState, nodes=NodeState, problems=Problem)
SHOWN: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any, Any], None]]] = {
    "status": (st.builds(Status, clusters=st.tuples(CLUSTER)), status._show),
    "doctor": (few(Checkup, programs=Program, servers=Server, findings=Problem), doctor._show),
    "present": (st.from_type(Presence), present._show_presence),
    "put": (st.from_type(Uploaded), put._show_upload),
    "get": (st.from_type(Downloaded), get._show_download),
    "drop": (st.from_type(Dropped), drop._show_removal),
    "lock": (st.from_type(Locked), lock._show_lock),
    "token create": (st.from_type(token.NewToken), token._show_new),
    "token list": (few(token.KnownTokens, tokens=token.KnownToken), token._show_known),
    "token revoke": (st.from_type(token.KnownToken), token._show_revoked),
    "check": (
        st.tuples(few(Check, findings=Finding, nodes=NodeCount, problems=Problem), st.from_type(Finding)),
        lambda shown, console: check._show(shown[0], [shown[1]], 1, console),
    ),
    "repair": (
        st.tuples(few(Repair, deliveries=Transfer, nodes=NodeRepair, problems=Problem), st.from_type(Transfer)),
        lambda shown, console: repair._show(shown[0], [shown[1]], 1, console),
    ),
}
quick = settings(max_examples=10, suppress_health_check=list(HealthCheck), deadline=None)


def harmless(text: str) -> bool:
    """Whether a terminal obeys nothing of it."""
    return text.replace("\n", "").isprintable()


def printed(monkeypatch: pytest.MonkeyPatch, show: Callable[[], object]) -> str:
    """What `show` writes to standard output and standard error."""
    written = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", written)
        patch.setattr(sys, "stderr", written)
        show()
    return written.getvalue()


@pytest.mark.parametrize("command", SHOWN)
def test_an_outcome_is_shown_without_control_characters(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes, show = SHOWN[command]

    @quick
    @given(outcomes)
    def holds(outcome: Any) -> None:
        assert harmless(printed(monkeypatch, lambda: emit(outcome, False, show)))
        told = printed(monkeypatch, lambda: emit(outcome, True, show))
        assert harmless(told)
        assert told.isascii()
        json.loads(told)

    holds()


@quick
@given(st.from_type(Heading), st.lists(st.from_type(TracedMessage), min_size=1, max_size=5))
def test_a_trace_is_told_and_drawn_without_control_characters(heading: Heading, messages: list[TracedMessage]) -> None:
    telling = TraceFormatter(heading)
    messages = [replace(said, message=f"{said.message} {ONE}") for said in messages]
    lines = [line for said in messages for line in telling.lines(said)]
    diagram = lay_out(heading, messages, 0)
    lines += [*as_text(diagram), *as_svg(diagram)]
    assert all(harmless(line) for line in lines)


@quick
@given(hostile)
def test_messages_to_git_annex_are_one_printable_line(text: str) -> None:
    assert one_line(text).isprintable()
    assert one_line(text)


@quick
@given(st.binary(max_size=400), st.integers(100, 599), hostile)
def test_what_a_server_over_http_says_comes_out_as_one_printable_line(body: bytes, status: int, text: str) -> None:
    client = HttpClient("http://x", ONE, name="x", client=ONE, pool=httpcore.AsyncConnectionPool())
    answer = Answer(status, body + text.encode(errors="surrogateescape"))
    assert str(client.failure(answer, "checking WORM--x")).isprintable()
    assert answer.text().isprintable()
    assert _reason(httpcore.RemoteProtocolError(text)).isprintable()


@quick
@given(hostile | st.text("<>\"'&;/= \x1b", min_size=1))
def test_text_in_the_page_for_browsers_is_neither_markup_nor_control_characters(text: str) -> None:
    shown = web._shown(text)
    assert shown.isprintable()
    assert not set("<>\"'") & set(shown)
    assert html.unescape(shown) == printable(text, 500)


@pytest.mark.anyio
async def test_what_the_gateway_notes_about_its_clients_is_one_printable_line() -> None:
    """Also what git http-backend prints, and the names of tokens."""

    @quick
    @given(hostile)
    def holds(text: str) -> None:
        lines: list[str] = []
        noting = Gateway(Mock(), Mock(), 1.0, lines.append)
        noting._note(Connection("client", "127.0.0.1"), text)
        assert len(lines) == 1
        assert lines[0].isprintable()

    holds()


def test_whatever_else_is_said_has_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    def log(text: str) -> str:
        """What a line of the gateway's log is: it goes past Python's streams."""
        written: list[bytes] = []
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda _descriptor, data: written.append(data))
            serve._say(text)
        return b"".join(written).decode()

    @quick
    @given(hostile)
    def holds(text: str) -> None:
        for show in (
            lambda: say(text),
            lambda: say_of_plans(f"$ git annex initremote {text}"),
            lambda: console().print(text),
            lambda: console().print(table([text], [[text]])),
            lambda: failure.report(Unreachable(text)),
            lambda: failure.report(typer.BadParameter(text)),
            lambda: failure.report(ZeroDivisionError(text)),
        ):
            assert harmless(printed(monkeypatch, show))
        assert harmless(log(text))
        assert log(text).count("\n") == 1

    holds()


class Terminal(io.StringIO):
    """A stream that takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


def test_questions_have_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so of every command that asks before it changes something."""
    runner = Runner(None, say_of_plans)  # type: ignore[arg-type]

    @quick
    @given(hostile, hostile)
    def holds(question: str, note: str) -> None:
        written = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", Terminal("n\n"))
            patch.setattr(sys, "stdout", written)
            patch.setattr(sys, "stderr", written)
            with pytest.raises(typer.Abort):
                execute(Plan(notes=(note,), questions=(question,)), runner, dry_run=False, yes=False)
        assert "[y/N]" in written.getvalue()
        assert harmless(re.sub(r"\x1b\[(?:0|1|22)m", "", written.getvalue()))

    holds()
