"""Values of a parameter that only `make test-all` tries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def only_in_all(*values: Any) -> list[Any]:
    """Values, or tuples of them, that repeat what others show already: marked `slow`."""
    each = (value if isinstance(value, tuple) else (value,) for value in values)
    return [pytest.param(*these, marks=pytest.mark.slow) for these in each]


def representatives(values: Iterable[Any], *chosen: Any) -> list[Any]:
    """The values of a parameter, of which `make test` only tries those chosen to stand for the rest."""
    listed = list(values)
    assert set(chosen) <= set(listed), f"{chosen} are not among {listed}"
    return [each if each in chosen else only_in_all(each)[0] for each in listed]
