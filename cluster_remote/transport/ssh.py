"""The command line that runs git-annex-shell on another machine, as git would build it.

Which ssh: GIT_SSH_COMMAND, else core.sshCommand, both of them given to a shell; else GIT_SSH, a program; else `ssh`.
Which options it understands: GIT_SSH_VARIANT, else ssh.variant, else by the program's name (see git-config(1),
ssh.variant). What comes from the url is always passed as words of its own, never through that shell's eyes.
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

# How many log in at one server at the same time: sshd refuses some from the tenth on (sshd_config(5), MaxStartups), and
# other programs log in there too.
_LOGINS = 4
# Seconds until a login that was refused is tried again, by attempt.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
# What ssh says when the server has closed the connection before there was a login.
_REFUSED = re.compile("kex_exchange_identification|Connection (closed|reset) by|MaxStartups")

_limiters: RunVar[dict[str, CapacityLimiter]] = RunVar("cluster_remote_ssh_logins")


class SshTransport(ProcessTransport):
    """A program on another machine, by ssh. `destination` is the server that logins are counted by."""

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
        """See Transport. Whoever was refused at the same time does not come back at the same time."""
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
    """The argument list. `remote_command` is quoted here for the login shell on the other side; `options` are the
    user's own for this ssh.

    Raises BadAddress where the ssh program cannot do what the address asks for.
    """
    line = environment.get("GIT_SSH_COMMAND") or core_ssh_command
    if line:
        # As git does it: the line is the user's own and may hold options and quotes; "$@" is what we add.
        start = ["sh", "-c", f'{line} "$@"', line]
        words = _words(line)
        program = next((word for word in words if "=" not in word), "ssh")
    else:
        program = environment.get("GIT_SSH") or "ssh"
        start = [program]
    variant = environment.get("GIT_SSH_VARIANT") or variant or "auto"
    if variant == "auto":
        name = os.path.basename(program).lower().removesuffix(".exe")  # noqa: PTH119 -- a word, not a file
        # By its name git knows these, "putty" and "simple" only by the variant.
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
    """A word as every login shell reads it, csh too: that one sees an exclamation mark inside quotes."""
    return shlex.quote(word).replace("!", "'\\!'")


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()
