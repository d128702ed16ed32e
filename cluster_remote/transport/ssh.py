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
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from cluster_remote.transport.address import BadAddress, Ssh
from cluster_remote.transport.process import ProcessTransport
from cluster_remote.transport.sharedssh import SharedConnection, server_of

__all__ = ["SshTransport", "can_share", "ssh_command"]

# Seconds before retrying a refused login, by attempt.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
# What ssh prints if the server closes the connection before login, or opens no session after it.
_REFUSED = re.compile(
    "kex_exchange_identification|Connection (closed|reset) by|MaxStartups|"
    "Session open refused|open failed: administratively prohibited"
)

# The user's own options for sharing connections.
_SHARING = re.compile("-S|.*Control(Master|Path|Persist)", re.IGNORECASE)


class SshTransport(ProcessTransport):
    """git-annex-shell on another machine, through ssh.

    `command` makes the command line from options for ssh; `login` is the part of it that determines the connection, for
    limiting logins. `closing` is the command that closes a shared connection, with an empty word where the path of its
    socket goes; None if connections must not be shared.
    """

    def __init__(
        self,
        command: Callable[[Sequence[str]], list[str]],
        *,
        name: str,
        environment: Mapping[str, str],
        login: tuple[str, ...],
        closing: Sequence[str] | None = None,
    ) -> None:
        super().__init__(command(()), name=name, environment=environment)
        self._with_options = command
        self._login = login
        self._closing = closing
        self._shared: SharedConnection | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """See Transport."""
        async with server_of(self._login).turn(self._closing, self._environment) as self._shared:
            yield

    def _start(self) -> subprocess.Popen[bytes]:
        shared = self._shared
        self.command = self._with_options(() if shared is None else shared.options)
        child = super()._start()
        if shared is not None:
            shared.sessions.append(child)
        return child

    def retry_delay(self, attempts: int, complaint: str) -> float | None:
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
    start, words = _program(environment, core_ssh_command)
    port: list[str] = []
    if address.port is not None:
        match _variant(words, environment, variant):
            case "plink" | "putty":
                port = ["-P", str(address.port)]
            case "tortoiseplink":
                port = ["-batch", "-P", str(address.port)]
            case "simple":
                raise BadAddress(f"{address}: the ssh program in use (variant simple) cannot be given a port")
            case _:
                port = ["-p", str(address.port)]
    last = [" ".join(map(_quoted, remote_command))] if remote_command else []
    return [*start, *options, *port, address.destination, *last]


def can_share(
    environment: Mapping[str, str],
    core_ssh_command: str | None = None,
    variant: str | None = None,
    options: Sequence[str] = (),
) -> bool:
    """Return whether the ssh program is OpenSSH, and the user's options do not share connections in another way."""
    _start, words = _program(environment, core_ssh_command)
    # Only the user knows which options other programs understand.
    named = environment.get("GIT_SSH_VARIANT") or variant or "auto"
    openssh = named == "ssh" or (named == "auto" and _name(words) == "ssh")
    return openssh and not any(_SHARING.match(word) for word in (*words, *options))


def _program(environment: Mapping[str, str], core_ssh_command: str | None) -> tuple[list[str], list[str]]:
    """Return the start of a command line that runs the user's ssh program, and the words of the user's command."""
    if line := environment.get("GIT_SSH_COMMAND") or core_ssh_command:
        # Like git: the command is the user's and may contain options and quotes; "$@" is what we add.
        return ["sh", "-c", f'{line} "$@"', line], _words(line)
    program = environment.get("GIT_SSH") or "ssh"
    return [program], [program]


def _name(words: Sequence[str]) -> str:
    program = next((word for word in words if "=" not in word), "ssh")
    return os.path.basename(program).lower().removesuffix(".exe")  # noqa: PTH119 -- a word, not a file


def _variant(words: Sequence[str], environment: Mapping[str, str], variant: str | None) -> str:
    variant = environment.get("GIT_SSH_VARIANT") or variant or "auto"
    if variant != "auto":
        return variant
    # git recognises these by name; "putty" and "simple" only as a variant.
    return name if (name := _name(words)) in {"plink", "tortoiseplink"} else "ssh"


def _quoted(word: str) -> str:
    """Quote a word for any login shell, including csh, which expands exclamation marks inside quotes."""
    return shlex.quote(word).replace("!", "'\\!'")


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()
