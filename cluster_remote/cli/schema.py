"""JSON schemas of what `--json` prints, one per command, generated from the dataclass that the command emits.

Each field's meaning is in its annotation: `Annotated[float, "seconds"]`. `python -m cluster_remote.cli.schema` prints
docs/json.md; a test compares the two, so that nothing scripts rely on changes by accident.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import json
import types
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cluster_remote.cli.render import JSON
from cluster_remote.p2p.key import UUID, AssociatedFile, Key

__all__ = ["OUTCOMES", "document", "outcome", "schema", "schema_of"]

OUTCOMES: Mapping[str, str] = {
    "check": "cluster_remote.diagnosis.comparison:Check",
    "doctor": "cluster_remote.diagnosis.checkup:Checkup",
    "drop": "cluster_remote.diagnosis.request:Dropped",
    "get": "cluster_remote.diagnosis.request:Downloaded",
    "lock": "cluster_remote.diagnosis.request:Locked",
    "ping": "cluster_remote.cli.ping:Pong",
    "present": "cluster_remote.diagnosis.request:Presence",
    "put": "cluster_remote.diagnosis.request:Uploaded",
    "repair": "cluster_remote.diagnosis.repairing:Repair",
    "status": "cluster_remote.diagnosis.state:Status",
    "token create": "cluster_remote.cli.token:NewToken",
    "token list": "cluster_remote.cli.token:KnownTokens",
    "token revoke": "cluster_remote.cli.token:KnownToken",
    "trace": "cluster_remote.diagnosis.conversation:Conversation",
}
"""The class that each command with `--json` emits, as module:class."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN: Mapping[Any, str] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    UUID: "string",
    Key: "string",
    AssociatedFile: "string",
}


def outcome(command: str) -> type:
    """Return the class that a command emits. Raises KeyError if it has no `--json`."""
    module, _, name = OUTCOMES[command].partition(":")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, type)
    return found


def schema(command: str, *, strict: bool = False) -> dict[str, JSON]:
    """Return the JSON schema of what a command emits.

    Later versions may add fields, so additional ones are allowed, except with `strict`, which is for tests.
    """
    described = schema_of(outcome(command), strict=strict)
    return {"$schema": _DIALECT, "title": f"cluster-remote {command} --json", **described}


def schema_of(kind: Any, *, strict: bool = False) -> dict[str, JSON]:
    """Return the schema of a type that `to_json` supports. Raises TypeError for any other."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        described = schema_of(arguments[0], strict=strict)
        words = next((each for each in arguments[1:] if isinstance(each, str)), None)
        return described if words is None else {**described, "description": words}
    if origin in (Union, types.UnionType):
        return _either([schema_of(each, strict=strict) for each in arguments])
    if origin is Literal:
        return {"enum": list(arguments)}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": schema_of(arguments[1], strict=strict)}
    if isinstance(origin, type) and issubclass(origin, Sequence | Set):
        return {"type": "array", "items": schema_of(arguments[0], strict=strict)}
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if isinstance(kind, type):
        if issubclass(kind, PurePath):
            return {"type": "string"}
        if issubclass(kind, enum.Enum):
            return {"enum": [each.value for each in kind]}
        if is_dataclass(kind):
            return _object(kind, strict)
    raise TypeError(f"{kind} has no schema")


def _either(choices: list[dict[str, JSON]]) -> dict[str, JSON]:
    """Merge a choice of plain types into one."""
    if all(set(choice) == {"type"} for choice in choices):
        return {"type": [choice["type"] for choice in choices]}
    return {"anyOf": list(choices)}


def _object(kind: type, strict: bool) -> dict[str, JSON]:
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]
    described: dict[str, JSON] = {
        "type": "object",
        "description": (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " "),
        "properties": {name: schema_of(hints[name], strict=strict) for name in names},
        "required": list(names),
    }
    if strict:
        described["additionalProperties"] = False
    return described


_INTRODUCTION = """\
# What --json prints

One JSON object on standard output, with the same [exit code](exit-codes.md) as without `--json`. A command that fails
before it has an outcome prints an object with two fields: `error`, the message that also goes to standard error, and
`exit_code`. Commands that print their outcome incrementally (`check`, `repair`, `trace`) add these two fields to what
they have already printed.

Later versions may add fields, but never rename, remove or redefine one. Sizes are in bytes, times in seconds. Non-UTF-8
bytes in keys and file names appear as lone surrogates (`\\udc80` to `\\udcff`), as in Python's surrogateescape.

This page is generated: `python -m cluster_remote.cli.schema > docs/json.md`.
"""


def document() -> str:
    """Return docs/json.md: every schema."""
    parts = [_INTRODUCTION]
    for command in sorted(OUTCOMES):
        parts.append(f"## {command}\n\n```json\n{json.dumps(schema(command), indent=2)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(document(), end="")
