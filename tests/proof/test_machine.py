"""A few steps of the state machine in each way; `make soak` takes thousands."""

from __future__ import annotations

import pytest

from tests.proof.soak import chosen_for, episode
from tests.proof.world import WAYS, worlds
from tests.support.slow import representatives

STEPS = 18


@pytest.mark.parametrize("way", representatives(WAYS, "served"))
def test_no_step_loses_a_copy_or_falsifies_the_log(way: str) -> None:
    with worlds(way) as fresh:
        violation = episode(next(fresh), chosen_for(2, 0, count=STEPS))
        assert violation is None, violation
