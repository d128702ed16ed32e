"""Open streams that are child processes: git-annex-shell here or over ssh, and programs for other networks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from cluster_remote.annex.repository import foreign_environment
from cluster_remote.p2p.client import Transport
from cluster_remote.p2p.key import UUID
from cluster_remote.transport.address import Directory, P2pAnnex, Ssh
from cluster_remote.transport.opening import Caller, token_for
from cluster_remote.transport.process import ProcessTransport
from cluster_remote.transport.ssh import SshTransport, can_share, ssh_command
from cluster_remote.transport.trust import check_directory

__all__ = ["by_program", "shell_in_directory", "shell_over_ssh", "ssh_environment"]

_SHELL_HINT = "git-annex-shell comes with git-annex; add its directory to PATH"


def shell_in_directory(address: Directory, caller: Caller, server: UUID | None, token: str | None) -> Transport:
    environment = foreign_environment() | _config_variables(caller.settings)
    return ProcessTransport(
        _shell_command(address.path, caller.uuid, server),
        name=str(address),
        environment=environment,
        hint=_SHELL_HINT,
        directory=address.path,
        check=lambda: check_directory(address.path, caller.repository, environment),
    )


def _config_variables(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that pass settings to git (git-config(1), GIT_CONFIG_COUNT)."""
    variables = {"GIT_CONFIG_COUNT": str(len(settings))} if settings else {}
    for number, (name, value) in enumerate(settings.items()):
        variables |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


def shell_over_ssh(address: Ssh, caller: Caller, server: UUID | None, token: str | None) -> Transport:
    # Like for git, a relative path is relative to the remote home directory.
    shell = _shell_command(address.path, caller.uuid, server)

    def command(options: Sequence[str], *remote_command: str) -> list[str]:
        return ssh_command(
            address,
            remote_command,
            os.environ,
            caller.ssh_command,
            caller.ssh_variant,
            (*options, *caller.ssh_options),
        )

    shares = caller.share_ssh and can_share(os.environ, caller.ssh_command, caller.ssh_variant, caller.ssh_options)
    return SshTransport(
        lambda options: command(options, *shell),
        name=str(address),
        environment=ssh_environment(),
        login=tuple(command(())),
        closing=command(("-S", "", "-O", "exit")) if shares else None,
    )


def by_program(address: P2pAnnex, caller: Caller, server: UUID | None, token: str | None) -> Transport:
    program = f"git-annex-p2p-{address.net}"
    return ProcessTransport(
        [program, address.path],
        name=str(address),
        environment=foreign_environment(),
        hint=f"this network needs the program {program} on PATH",
        token=token_for(address, token, address.node),
    )


def _shell_command(directory: str, client: UUID, server: UUID | None) -> list[str]:
    command = ["git-annex-shell", "p2pstdio", directory, client.text]
    return command if server is None else [*command, "--uuid", server.text]


def ssh_environment() -> Mapping[str, str]:
    """Return the environment for ssh: the user's, without variables that point at a local repository."""
    environment = foreign_environment()
    # The user's own environment configures ssh, not the repository that we were started in.
    for name in ("GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSH_VARIANT"):
        if name in os.environ:
            environment[name] = os.environ[name]
    return environment
