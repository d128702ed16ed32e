"""cluster-remote: the table of commands, each imported only when it is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from cluster_remote import __version__
from cluster_remote.cli.interrupts import Interrupted, only_the_first_counts

__all__ = ["app", "every_command", "run"]

_COMMANDS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Set up": {
        "setup": ("setup:setup", "Create a remote for a cluster, join one, or fix one."),
        "node": ("node:app", "Add, remove and replace nodes of a cluster."),
        "rename": ("remove:rename", "Rename a cluster remote."),
        "remove": ("remove:remove", "Remove a cluster remote from this repository."),
    },
    "Check and repair": {
        "status": ("status:status", "Show the state of a cluster and its problems."),
        "check": ("check:check", "Compare what every node has with the location log."),
        "repair": ("repair:repair", "Copy content to the nodes that lack it."),
        "doctor": ("doctor:doctor", "Find mistakes in the installation and the setup."),
        "ping": ("ping:ping", "Check whether a gateway answers, and how fast."),
    },
    "Serve others": {
        "serve": ("serve:serve", "Serve this repository's cluster to others."),
        "token": ("token:app", "Create, list and revoke tokens for clients."),
    },
    "Talk to one server or node": {
        "present": ("present:present", "Ask whether content is there."),
        "put": ("put:put", "Store content there."),
        "get": ("get:get", "Download content from there into a file."),
        "drop": ("drop:drop", "Remove content there WITHOUT checking for other copies."),
        "lock": ("lock:lock", "Lock content against removal for a while."),
    },
    "Try out": {
        "demo": ("demo:demo", "Build a cluster in a temporary directory and use it."),
        "trace": ("trace:trace", "Run a command and show its P2P protocol messages."),
        "bench": ("bench:bench", "Compare speed with git-annex's own gateway."),
    },
}
"""The commands by group: module and function, and the line in `--help`."""


class LazyCommand(TyperCommand):
    """A command that is only imported when it runs or shows its help."""

    def __init__(self, group: str, name: str, where: str, summary: str) -> None:
        super().__init__(name, short_help=summary, rich_help_panel=group)
        self._where = where

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        # A group uses its commands only through their contexts.
        return _imported(str(self.name), self._where).make_context(*arguments, **options)


class Commands(TyperGroup):
    """All commands, in groups. Turns Ctrl-C into Interrupted, where typer would exit silently."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for group, commands in _COMMANDS.items():
            for name, (where, summary) in commands.items():
                self.add_command(LazyCommand(group, name, where, summary))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        # rich_help_panel is meant for typer's own layout, which we don't use.
        groups: dict[str, list[tuple[str, str]]] = {}
        width = formatter.width - 6 - max(map(len, self.commands))
        for name, command in self.commands.items():
            groups.setdefault(getattr(command, "rich_help_panel", "") or "Others", []).append(
                (name, command.get_short_help_str(width))
            )
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


def _imported(name: str, where: str) -> Any:
    """Import a command, or a group of commands."""
    module, _, attribute = where.partition(":")
    found = getattr(importlib.import_module(f"cluster_remote.cli.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name)(found)
        found = single
    command = typer.main.get_command(found)
    _set_placeholders(command)
    return command


_PLACEHOLDERS = {"timeout": "SECONDS"}


def _set_placeholders(command: Any) -> None:
    """Show words instead of Python types as placeholders in a command's help."""
    for each in getattr(command, "commands", {}).values():
        _set_placeholders(each)
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            # Newer versions of typer show the type even next to a metavar.
            parameter.display_type_rich = lambda ctx: None
            if parameter.metavar is not None:
                # And they add brackets, which the metavar already has.
                parameter.get_usage_pieces = lambda ctx, own=parameter.metavar: [own]
        elif parameter.metavar is None:
            parameter.metavar = _PLACEHOLDERS.get(parameter.name, parameter.name.upper())


app = typer.Typer(
    name="cluster-remote",
    cls=Commands,
    help="A git-annex cluster as one remote: set it up, look at it, try it out.\n\n"
    "Exit codes: 0 success, 1 the operation failed, 2 wrong usage, 3 a server is unreachable, "
    "4 not in a suitable repository, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"git-annex-remote-cluster {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """A git-annex cluster as one remote: set it up, look at it, try it out."""


def run() -> int:
    """Run the command line and return the exit code. No traceback reaches the user."""
    only_the_first_counts()
    try:
        outcome = app(standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 -- every failure is reported here
        from cluster_remote.cli.failure import report

        return report(error)
    return outcome if isinstance(outcome, int) else 0


def every_command() -> dict[str, Any]:
    """Import all commands and return them by their full names, such as `node add`."""
    found: dict[str, Any] = {}
    for commands in _COMMANDS.values():
        for name, (where, _) in commands.items():
            command = _imported(name, where)
            parts = getattr(command, "commands", None)
            found |= {name: command} if parts is None else {f"{name} {part}": each for part, each in parts.items()}
    return found
