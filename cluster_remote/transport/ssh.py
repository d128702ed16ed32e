"""Build the ssh command line that runs git-annex-shell on another machine, as git would.

The program: GIT_SSH_COMMAND, else core.sshCommand, both run by a shell; else GIT_SSH, a program; else `ssh`. The
options that it understands: GIT_SSH_VARIANT, else ssh.variant, else guessed from the program's name (see git-config(1),
ssh.variant). Parts of the url are always passed as separate arguments, which that shell never parses.
"""

from __future__ import annotations

import os
import random
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from cluster_remote.transport.address import BadAddress, Ssh
from cluster_remote.transport.process import ProcessTransport

__all__ = ["SshTransport", "ssh_command"]

# Concurrent logins per server: sshd starts refusing at ten (sshd_config(5), MaxStartups), and other programs log in
# there too.
_LOGINS = 4
# Seconds before retrying a refused login, by attempt.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
# What ssh prints if the server closes the connection before login.
_REFUSED = re.compile("kex_exchange_identification|Connection (closed|reset) by|MaxStartups")

_limiters: RunVar[dict[str, CapacityLimiter]] = RunVar("cluster_remote_ssh_logins")


class SshTransport(ProcessTransport):
    """A program run on another machine through ssh. `destination` is the server whose logins are limited."""

    def __init__(self, command: Sequence[str], *, name: str, environment: Mapping[str, str], destination: str) -> None:
        super().__init__(command, name=name, environment=environment)
        self._destination = destination

    def turn(self) -> AbstractAsyncContextManager[None]:
        """See Transport."""
        try:
            limiters = _limiters.get()
        except LookupError:
            limiters = {}
            _limiters.set(limiters)
        return limiters.setdefault(self._destination, CapacityLimiter(_LOGINS))

    def again_in(self, attempts: int, complaint: str) -> float | None:
        """See Transport. The delay is randomised so that refused logins do not retry at the same moment."""
        if attempts > len(_PAUSES) or not _REFUSED.search(complaint):
            return None
        return _PAUSES[attempts - 1] * random.uniform(0.5, 1.5)


def ssh_command(
    address: Ssh,
    remote_command: Sequence[str],
    environment: Mapping[str, str],
    core_ssh_command: str | None = None,
    variant: str | None = None,
    options: Sequence[str] = (),
) -> list[str]:
    """Return the argument list for ssh.

    `remote_command` is quoted here for the remote login shell; `options` are the user's for this ssh. Raises BadAddress
    if the ssh program cannot do what the address requires.
    """
    line = environment.get("GIT_SSH_COMMAND") or core_ssh_command
    if line:
        # Like git: the command is the user's and may contain options and quotes; "$@" is what we add.
        start = ["sh", "-c", f'{line} "$@"', line]
        words = _words(line)
        program = next((word for word in words if "=" not in word), "ssh")
    else:
        program = environment.get("GIT_SSH") or "ssh"
        start = [program]
    variant = environment.get("GIT_SSH_VARIANT") or variant or "auto"
    if variant == "auto":
        name = os.path.basename(program).lower().removesuffix(".exe")  # noqa: PTH119 -- a word, not a file
        # git recognises these by name; "putty" and "simple" only as a variant.
        variant = name if name in {"plink", "tortoiseplink"} else "ssh"
    port: list[str] = []
    if address.port is not None:
        match variant:
            case "plink" | "putty":
                port = ["-P", str(address.port)]
            case "tortoiseplink":
                port = ["-batch", "-P", str(address.port)]
            case "simple":
                raise BadAddress(f"{address}: the ssh program in use (variant simple) cannot be given a port")
            case _:
                port = ["-p", str(address.port)]
    return [*start, *options, *port, address.destination, " ".join(map(_quoted, remote_command))]


def _quoted(word: str) -> str:
    """Quote a word for any login shell, including csh, which expands exclamation marks inside quotes."""
    return shlex.quote(word).replace("!", "'\\!'")


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()
