"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster_remote.cli.completion import remotes

__all__ = ["DryRun", "Json", "NameOrUrl", "NodeTimeout", "OnlyCluster", "Timeout", "Yes"]

NameOrUrl = Annotated[
    str,
    typer.Argument(
        metavar="NAME|URL",
        help="A remote of this repository or an address.",
        autocompletion=remotes,
        show_default=False,
    ),
]
OnlyCluster = Annotated[
    str,
    typer.Argument(
        metavar="[NAME]",
        help="A cluster remote; optional if this repository has only one.",
        autocompletion=remotes,
        show_default=False,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(help="Seconds to wait without progress (default: the remote's, else 60).", show_default=False),
]
NodeTimeout = Annotated[
    float | None,
    typer.Option(min=0.1, help="Seconds to wait for a node (default: the remote's).", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object (docs/json.md).")]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Show what would be done, without doing it.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
