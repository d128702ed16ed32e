"""A few native clients for some seconds; `make killed-clients` has fifty of them work for five minutes."""

from __future__ import annotations

import pytest

from tests.proof.killed_clients import run


@pytest.mark.slow
def test_killed_clients_do_not_hinder_others_and_leave_nothing_behind() -> None:
    account = run(clients=6, seconds=10)
    assert not account.failures, account.failures[0]
    assert account.killed, account
    assert min(account.done.values()) >= 3, account
    descriptors, children, resident = account.before
    assert account.after[0] <= descriptors, account
    assert account.after[1] <= children, account
    assert account.after[2] < resident + 50_000, account
