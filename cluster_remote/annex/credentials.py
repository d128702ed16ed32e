"""Access the credential files that git-annex keeps for a special remote, without going through git-annex.

With --debug, git-annex prints everything it exchanges with a special remote, including credentials (SETCREDS and CREDS,
observed with git-annex 10.20261026). And our own commands do not run under git-annex.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from cluster_remote.annex.errors import CredentialsUnreadable
from cluster_remote.annex.private import make_private_directory
from cluster_remote.p2p.key import UUID, decode, encode

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["credentials_file", "permissions_ok", "read_credentials", "read_p2p_token", "write_credentials"]

# Far more bytes than any user name and password need.
_LIMIT = 64 * 1024


def credentials_file(repository: Repository, uuid: UUID, setting: str) -> Path:
    """Return the path of git-annex's credential file.

    `uuid` is the answer to GETUUID: a sameas remote shares its credentials with the remote that it is the same as
    (observed with git-annex 10.20261026).
    """
    if "/" in setting or "\0" in setting:
        raise ValueError(f"{setting!r} cannot be the name of a credential")
    return repository.annex_dir / "creds" / f"{uuid}-{setting}"


def read_credentials(repository: Repository, uuid: UUID, setting: str) -> tuple[str, str] | None:
    """Return user and password; None if none are stored. Raises CredentialsUnreadable, which never quotes them."""
    file = credentials_file(repository, uuid, setting)
    try:
        with file.open("rb") as f:
            content = f.read(_LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise CredentialsUnreadable(f"{file} cannot be read: {e.strerror or e}; check its permissions") from e
    lines = decode(content).split("\n")
    if len(content) > _LIMIT or len(lines) < 2:
        raise CredentialsUnreadable(
            f"{file} is not two lines, user and password: give the token again with git annex enableremote"
        )
    return lines[0], lines[1]


def write_credentials(repository: Repository, uuid: UUID, setting: str, user: str, password: str) -> None:
    """Store credentials for git-annex (GETCREDS) and `read_credentials`. Raises CredentialsUnreadable."""
    file = credentials_file(repository, uuid, setting)
    new = file.with_name(f"{file.name}.{os.urandom(8).hex()}.new")
    try:
        make_private_directory(file.parent)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as f:
            f.write(encode(f"{user}\n{password}"))
        new.replace(file)
    except OSError as e:
        with contextlib.suppress(OSError):
            new.unlink()
        raise CredentialsUnreadable(f"{file} cannot be written: {e.strerror or e}; check its permissions") from e


def read_p2p_token(repository: Repository, address: str) -> str | None:
    """Return the token of git-annex's P2P transports for an address (`NET:ADDRESS`, or an onion service's name).

    They have a file for each address, named after it (observed with git-annex 10.20261026). None without a usable one.
    """
    name = "".join(c if c.isalnum() else f"%{ord(c):02X}" for c in address)
    try:
        with (repository.annex_dir / "creds" / name).open("rb") as file:
            token = decode(file.read(_LIMIT)).strip()
    except OSError:
        return None
    return token if token.isascii() and token.isalnum() else None


def permissions_ok(file: Path) -> bool:
    """Return whether only the owner (and root) can read or change the file. Raises OSError if it does not exist."""
    return not file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
