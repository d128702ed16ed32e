"""Values of a parameter that only `make test-all` tries."""

from __future__ import annotations

from typing import Any

import pytest


def only_in_all(*values: Any) -> list[Any]:
    """Values, or tuples of them, that repeat what others show already: marked `slow`."""
    each = (value if isinstance(value, tuple) else (value,) for value in values)
    return [pytest.param(*these, marks=pytest.mark.slow) for these in each]
