"""The command line that runs git-annex-shell on another machine, as git would build it.

Which ssh: GIT_SSH_COMMAND, else core.sshCommand, both of them given to a shell; else GIT_SSH, a program; else `ssh`.
Which options it understands: GIT_SSH_VARIANT, else ssh.variant, else by the program's name (see git-config(1),
ssh.variant). What comes from the url is always passed as words of its own, never through that shell's eyes.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

from cluster_remote.transport.address import BadAddress, Ssh

__all__ = ["ssh_command"]


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
