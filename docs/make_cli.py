"""Generate the reference of `cluster-remote`: `python docs/make_cli.py > docs/reference/cli.md`.

It has the text of `--help`, but not its layout, which differs between versions of typer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from cluster_remote.cli.app import every_command

INTRODUCTION = """\
# cluster-remote

The text of `--help` for every command. With `--json`, a command prints [one object](../json.md); all commands use [the
same exit codes](../exit-codes.md). Colours are off with `NO_COLOR`, and if standard output is not a terminal.
`cluster-remote --install-completion` installs shell completion of commands, remotes and nodes.

`git-annex-remote-cluster`, which git-annex starts without arguments, is the same program if it gets any.

This page is generated: `python docs/make_cli.py > docs/reference/cli.md`.
"""


def document() -> str:
    """Return docs/reference/cli.md: every command with its arguments and options."""
    parts = [INTRODUCTION]
    for name, command in every_command().items():
        parts += [f"## cluster-remote {name}\n", *_command(f"cluster-remote {name}", command)]
    return "\n".join(parts)


# typer's commands and parameters have the attributes of click's, even if typer does not use click itself.


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
    rows = [(_bare(argument), argument) for argument in arguments] + [(_syntax(option), option) for option in options]
    rows = [(syntax, parameter) for syntax, parameter in rows if parameter.help]
    if rows:
        yield "".join(f"* `{syntax}`: {_help(parameter)}\n" for syntax, parameter in rows)


def _bare(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper()).strip("[]")


def _in_usage(argument: Any) -> str:
    several = "…" if argument.nargs == -1 and "…" not in _bare(argument) else ""
    return f"{_bare(argument)}{several}" if argument.required else f"[{_bare(argument)}{several}]"


def _syntax(option: Any) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    return f"{names} {option.metavar or option.name.upper()}"


def _help(parameter: Any) -> str:
    text = _escaped(" ".join(parameter.help.split()))
    match parameter.default:
        case bool() | "":
            return text
        case str() as default:
            return f"{text} Default: {default}."
        case int() | float() as default:
            return f"{text} Default: {default:g}."
    return text


def _escaped(text: str) -> str:
    """Escape the characters that have a meaning in Markdown."""
    return "".join(f"\\{c}" if c in "*_<`" else c for c in text)


if __name__ == "__main__":
    print(document(), end="")
