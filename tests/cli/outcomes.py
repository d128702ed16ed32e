"""Output of commands with `--json`, validated by their schemas."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

from cluster_remote.cli.schema import schema


def outcome(command: str, printed: bytes | str) -> dict[str, Any]:
    """Return the object that `cluster-remote COMMAND --json` printed.

    Raises:
        AssertionError: it is not one JSON object, or the command's schema does not allow it.
    """
    text = printed.decode("utf-8") if isinstance(printed, bytes) else printed
    try:
        value = json.loads(text)
        jsonschema.validate(value, schema(command, strict=True), cls=jsonschema.Draft202012Validator)
    except (ValueError, jsonschema.ValidationError) as error:
        raise AssertionError(f"cluster-remote {command} --json printed {text!r}: {error}") from error
    assert isinstance(value, dict)
    return value
