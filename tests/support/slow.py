"""Parameter values that only `make test-all` tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def only_in_all(*values: Any) -> list[Any]:
    """Mark values, or tuples of them, as `slow`: they repeat what others show already."""
    each = (value if isinstance(value, tuple) else (value,) for value in values)
    return [pytest.param(*these, marks=pytest.mark.slow) for these in each]


def representatives(values: Iterable[Any], *chosen: Any) -> list[Any]:
    """Return the values of a parameter, with all but the chosen ones marked `slow`."""
    listed = list(values)
    assert set(chosen) <= set(listed), f"{chosen} are not among {listed}"
    return [each if each in chosen else only_in_all(each)[0] for each in listed]
