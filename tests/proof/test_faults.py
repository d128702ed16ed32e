"""A part of the table of faults; `make faults` makes all of it."""

from __future__ import annotations

import pytest

from tests.proof.faults import PARTIES, cells

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
    "client": (
        "AUTH, before VERSION, sends an endless line",
        "PUT, inside DATA, stalls",
        "GET, inside DATA, closes",
        "REMOVE, before the answer, closes",
    ),
}


@pytest.mark.parametrize("party", PARTIES)
def test_the_outcome_of_a_fault_is_truthful(party: str) -> None:
    chosen = {f"{party}, {name}" for name in CHOSEN[party]}
    found = {cell.name: cell.outcome for cell in cells(party, lambda name: name in chosen)}
    assert found.keys() == chosen
    assert not [name for name, outcome in found.items() if outcome.startswith("FAULT")], found
