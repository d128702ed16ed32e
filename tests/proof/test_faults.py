"""A part of the table of faults; `make faults` makes all of it."""

from __future__ import annotations

import pytest

from tests.proof.faults import FAULTS, PARTIES, cells, tables
from tests.support.slow import representatives

CHOSEN = {
    "gateway": (
        "CHECKPRESENT, before the answer, closes",
        "PUT, inside DATA, stalls",
        "GET, answers, more than there is",
        "REMOVE, before the answer, sends garbage",
    ),
    "node": (
        "CHECKPRESENT, answers, ERROR",
        "PUT, before the outcome, says something else",
        "GET, inside DATA, closes",
        "REMOVE, before the answer, stalls",
    ),
    "node behind serve": (
        "PUT, inside DATA, closes",
        "GET, answers, other bytes, and VALID",
        "REMOVE, before the answer, stalls",
    ),
    "node behind git-annex": (
        "PUT, answers, FAILURE after the content",
        "GET, before VALID, closes",
        "REMOVE, answers, FAILURE",
    ),
    "client": (
        "AUTH, before VERSION, sends an endless line",
        "PUT, inside DATA, stalls",
        "GET, inside DATA, resets",
        "REMOVE, before the answer, sends garbage",
    ),
}


@pytest.mark.parametrize("party", representatives(PARTIES, "node", "gateway", "client"))
def test_each_faults_outcome_matches_the_table(party: str) -> None:
    chosen = {f"{party}, {name}" for name in CHOSEN[party]}
    found = {cell.name: cell.outcome for cell in cells(party, lambda name: name in chosen)}
    assert found.keys() == chosen
    assert not [name for name, outcome in found.items() if outcome.startswith("FAULT")], found
    assert found == {name: documented(*name.split(", ", 3)) for name in chosen}, "make faults"


def documented(party: str, request: str, place: str, fault: str) -> str:
    """The outcome that the page gives for a cell; nothing where it has none."""
    section = "breaks" if fault in FAULTS else "says what is wrong"
    text = tables().partition(f"### The {party} {section}\n")[2].partition("\n### ")[0]
    for line in text.splitlines():
        match [cell.strip() for cell in line.strip("|").split(" | ")]:
            case [said, where, how, outcome] if (said, where) == (request, place) and fault in how.split(", "):
                return outcome
            case [said, how, outcome] if (said, how) == (request, fault):
                return outcome
    return ""


def test_every_outcome_in_the_table_is_truthful() -> None:
    for party in PARTIES:
        assert f"### The {party} breaks\n" in tables()
    assert "FAULT" not in tables()
