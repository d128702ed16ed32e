"""The JSON that scripts rely on: described, documented, and as the values are."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jsonschema
import pytest

from cluster_remote.cli.render import to_json
from cluster_remote.cli.schema import OUTCOMES, document, schema, schema_of
from cluster_remote.p2p.key import UUID, Key

DOCUMENT = Path(__file__).parents[2] / "docs" / "json.md"


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Part:
    """A part."""

    key: Key
    seconds: Annotated[float | None, "how long it took"]


@dataclass(frozen=True)
class Whole:
    """Something made of parts.

    More about it, that is no summary.
    """

    uuid: UUID
    parts: tuple[Part, ...]
    names: frozenset[str]
    counts: Mapping[str, int]
    colour: Colour
    mode: Literal["fast", "slow"] | None
    first: Part | None


WHOLE = Whole(
    UUID("00000000-0000-4000-8000-000000000001"),
    (Part(Key("WORM-s1--a"), 0.5), Part(Key("WORM--b"), None)),
    frozenset({"b", "a"}),
    {"x": 1},
    Colour.BLUE,
    None,
    None,
)


def test_a_value_becomes_json_by_its_field_names() -> None:
    assert to_json(WHOLE) == {
        "uuid": "00000000-0000-4000-8000-000000000001",
        "parts": [{"key": "WORM-s1--a", "seconds": 0.5}, {"key": "WORM--b", "seconds": None}],
        "names": ["a", "b"],
        "counts": {"x": 1},
        "colour": "blue",
        "mode": None,
        "first": None,
    }


def test_a_type_without_a_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        to_json({"x": object()})


def test_a_values_schema_allows_it_and_describes_its_fields() -> None:
    described = schema_of(Whole, strict=True)
    jsonschema.validate(to_json(WHOLE), described)
    assert described["description"] == "Something made of parts."
    part = schema_of(Part)
    assert isinstance(part["properties"], dict)
    assert part["properties"]["seconds"] == {"type": ["number", "null"], "description": "how long it took"}


@pytest.mark.parametrize(
    "change",
    [
        {"uuid": 1},
        {"parts": [{"key": "WORM--b"}]},
        {"parts": [{"key": "WORM--b", "seconds": "1"}]},
        {"counts": {"x": "1"}},
        {"colour": "green"},
        {"mode": "slower"},
        {"first": 3},
        {"more": 1},
    ],
)
def test_a_schema_rejects_what_the_type_does_not_allow(change: dict[str, object]) -> None:
    value = to_json(WHOLE)
    assert isinstance(value, dict)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**value, **change}, schema_of(Whole, strict=True))


def test_later_versions_may_add_fields() -> None:
    value = to_json(WHOLE)
    assert isinstance(value, dict)
    jsonschema.validate({**value, "more": 1}, schema_of(Whole))


@pytest.mark.parametrize("command", sorted(OUTCOMES))
def test_every_schema_is_a_valid_json_schema(command: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(command))


def test_the_json_documentation_matches_the_code() -> None:
    assert DOCUMENT.read_text("utf-8") == document(), "python -m cluster_remote.cli.schema > docs/json.md"
