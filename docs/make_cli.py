"""The reference of `cluster-remote`, made from the code: `python docs/make_cli.py > docs/reference/cli.md`.

From the same words as `--help`, but not from its layout, which differs between versions of the libraries that draw it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from cluster_remote.cli.app import every_command

INTRODUCTION = """\
# cluster-remote

What `--help` says, for reading at leisure. Every command with `--json` prints [one object](../json.md); exit codes mean
[the same everywhere](../exit-codes.md). Colours are left out with `NO_COLOR`, and where standard output is no terminal.
`cluster-remote --install-completion` makes the shell complete commands, remotes and nodes.

`git-annex-remote-cluster`, which git-annex starts without arguments, is the same program when given some.

This page is made from the code, by `make docs`.
"""


def document() -> str:
    """docs/reference/cli.md: every command with its arguments and options."""
    parts = [INTRODUCTION]
    for name, command in every_command().items():
        parts += [f"## cluster-remote {name}\n", *_command(f"cluster-remote {name}", command)]
    return "\n".join(parts)


# What typer makes of a function has the attributes of click's commands and parameters, whichever click that is.


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = [name, *(["[OPTIONS]"] if options else []), *(_in_usage(argument) for argument in arguments)]
    yield f"```text\n{' '.join(usage)}\n```\n"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("Example: "):
            yield f"Example:\n\n```text\n{' '.join(paragraph.removeprefix('Example: ').split())}\n```\n"
        else:
            yield f"{_escaped(paragraph)}\n"
    rows = [(_bare(argument), argument) for argument in arguments] + [(_spelt(option), option) for option in options]
    rows = [(spelt, parameter) for spelt, parameter in rows if parameter.help]
    if rows:
        yield "".join(f"* `{spelt}`: {_meaning(parameter)}\n" for spelt, parameter in rows)


def _bare(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper()).strip("[]")


def _in_usage(argument: Any) -> str:
    several = "…" if argument.nargs == -1 and "…" not in _bare(argument) else ""
    return f"{_bare(argument)}{several}" if argument.required else f"[{_bare(argument)}{several}]"


def _spelt(option: Any) -> str:
    spelt = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return spelt
    return f"{spelt} {option.metavar or option.name.upper()}"


def _meaning(parameter: Any) -> str:
    meaning = _escaped(" ".join(parameter.help.split()))
    match parameter.default:
        case bool() | "":
            return meaning
        case str() as default:
            return f"{meaning} Default: {default}."
        case int() | float() as default:
            return f"{meaning} Default: {default:g}."
    return meaning


def _escaped(text: str) -> str:
    """As text of Markdown that means nothing more."""
    return "".join(f"\\{c}" if c in "*_<`" else c for c in text)


if __name__ == "__main__":
    print(document(), end="")
