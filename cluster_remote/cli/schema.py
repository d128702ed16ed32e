"""The JSON that `--json` prints, described: one schema a command, made from the dataclass that the command emits.

What a field means stands beside it, in the class: `Annotated[float, "seconds"]`. The schemas are printed into
docs/json.md by `python -m cluster_remote.cli.schema`; a test holds both together, so that nothing that scripts rely on
changes by accident.
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
"""For each command that has `--json` the class of what it emits, as module:class."""

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
    """The class of what a command emits. Raises KeyError for one that has no `--json`."""
    module, _, name = OUTCOMES[command].partition(":")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, type)
    return found


def schema(command: str, *, strict: bool = False) -> dict[str, JSON]:
    """The JSON schema of what a command emits.

    Fields may be added in later versions, so that others than those described are allowed; with `strict`, which is for
    tests, they are not.
    """
    described = schema_of(outcome(command), strict=strict)
    return {"$schema": _DIALECT, "title": f"cluster-remote {command} --json", **described}


def schema_of(kind: Any, *, strict: bool = False) -> dict[str, JSON]:
    """The schema of a type that `to_json` knows. Raises TypeError for any other."""
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
    """Plain types side by side are written as one."""
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

One JSON object on standard output; the [exit code](exit-codes.md) is the same as without `--json`. A command that fails
before it has an outcome prints an object with two fields instead: `error`, the words that also go to standard error,
and `exit_code`. A command that writes its outcome bit by bit (`check`, `repair`, `trace`) adds these two to what it has
written by then.

Fields may be added in later versions; none is renamed, removed or given another meaning. Sizes are in bytes, times in
seconds. Bytes in keys and file names that are not UTF-8 stand as lone surrogates (`\\udc80` to `\\udcff`), as Python's
surrogateescape has them.

This page is made from the code: `python -m cluster_remote.cli.schema > docs/json.md`.
"""


def document() -> str:
    """docs/json.md: every schema."""
    parts = [_INTRODUCTION]
    for command in sorted(OUTCOMES):
        parts.append(f"## {command}\n\n```json\n{json.dumps(schema(command), indent=2)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(document(), end="")
