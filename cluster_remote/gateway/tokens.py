"""Access tokens of clients, and what each allows.

Only a token's SHA-256 is stored. It needs no salt and no slow hash: a token is 256 random bits, so it cannot be guessed
and no two are the same. Tokens consist of lower case letters and digits, since git-annex's own client takes no others
(observed with git-annex 10.20261026: it lower-cases capitals and drops tokens with any other character).
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster_remote.annex.filestate import FileState, state_of
from cluster_remote.annex.private import make_private_directory
from cluster_remote.annex.repository import Repository
from cluster_remote.gateway.errors import TokensUnusable, UnknownToken
from cluster_remote.p2p.key import UUID, encode
from cluster_remote.p2p.server import Mode

__all__ = ["MAX_TOKENS", "Claim", "Token", "Tokens", "for_node", "read_claim"]

MAX_TOKENS = 1000
"""The maximum number of tokens: each connection is compared with every one."""

_TOKEN_BYTES = 32
_TOKEN_LENGTH = 52
_UUID_DIGITS = 32
_ID = re.compile(r"[0-9a-f]{8}")
_HASH = re.compile(r"[0-9a-f]{64}")
# Far more than the largest number of tokens with the longest notes.
_FILE_LIMIT = 4 * 1024 * 1024
_NOTE_LIMIT = 200
# Seconds to wait for another process that is changing the tokens, and between attempts.
_LOCK_WAIT, _LOCK_LOOK = 10.0, 0.02
# Seconds without a change after which the file's state identifies its content.
_SETTLED = 1.0


@dataclass(frozen=True, slots=True)
class Token:
    """What is known about a token, without the token itself. Times are in seconds since 1970; `expires` None: never.

    `only` is the one repository or cluster that it gives access to; None: the clusters, and the nodes behind this
    gateway. `own` adds the gateway's own repository; `git` adds fetching from and pushing to it.
    """

    id: str
    mode: Mode
    note: str
    created: int
    sha256: str
    expires: int | None = None
    only: UUID | None = None
    git: bool = True
    own: bool = False

    def has_expired(self) -> bool:
        """Return whether the token has expired."""
        return self.expires is not None and time.time() >= self.expires

    def refusal(self, wanted: UUID, own: UUID) -> str | None:
        """Return why it gives no access to this repository or cluster behind the gateway whose own UUID is `own`."""
        if self.only is not None and wanted != self.only:
            return f"this token gives access only to {self.only}"
        if wanted == own and not self.own and self.only != own:
            return "this token gives no access to the gateway's own repository"
        return None


@dataclass(frozen=True, slots=True)
class Claim:
    """What a client presents: a token and optionally the repository that it wants behind the gateway."""

    token: str
    wanted: UUID | None = None

    def __repr__(self) -> str:
        return f"Claim(token=…, wanted={self.wanted})"


def read_claim(text: str) -> Claim | None:
    """Parse `TOKEN`, `TOKEN/UUID`, or the token followed by the UUID's 32 digits. Return None for anything else.

    The last form is for git-annex's own client, whose tokens can contain neither slashes nor dashes.
    """
    token, slash, uuid = text.partition("/")
    if not slash and len(text) == _TOKEN_LENGTH + _UUID_DIGITS:
        token, digits = text[:_TOKEN_LENGTH], text[_TOKEN_LENGTH:]
        uuid = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    try:
        return Claim(token, UUID(uuid) if uuid or slash else None)
    except ValueError:
        return None


def for_node(token: str, node: UUID) -> str:
    """Return a token that requests one repository behind the gateway, in the form that git-annex's client can send."""
    return token + node.text.replace("-", "")


def _hash(token: str) -> str:
    return hashlib.sha256(encode(token)).hexdigest()


class Tokens:
    """The tokens of one gateway, kept in a file that only its owner can read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        # The tokens, and the state of the file that they were read from: reading a thousand takes ten milliseconds, and
        # anybody can present wrong tokens.
        self._read: tuple[tuple[int, ...], list[Token]] | None = None

    @classmethod
    def of(cls, repository: Repository) -> Tokens:
        """Return the tokens of the gateway in this repository, shared by all its work trees."""
        return cls(repository.common_dir / "cluster-remote" / "tokens")

    def create(
        self,
        mode: Mode,
        note: str = "",
        *,
        expires: int | None = None,
        only: UUID | None = None,
        git: bool = True,
        own: bool = False,
    ) -> tuple[Token, str]:
        """Create a token; return it and its text, which is not stored. See Token.

        Raises TokensUnusable; ValueError for a note that is too long or not printable.
        """
        if len(note) > _NOTE_LIMIT or not all(c.isprintable() for c in note):
            raise ValueError(f"a note may have at most {_NOTE_LIMIT} printable characters")
        text = base64.b32encode(secrets.token_bytes(_TOKEN_BYTES)).decode().rstrip("=").lower()
        with self._locked():
            tokens = self.all()
            if len(tokens) >= MAX_TOKENS:
                raise TokensUnusable(
                    f"there are {len(tokens)} tokens already; revoke unused ones with cluster-remote token revoke"
                )
            taken = {token.id for token in tokens}
            while (identity := secrets.token_hex(4)) in taken:
                pass
            token = Token(identity, mode, note, int(time.time()), _hash(text), expires, only, git, own)
            self._write([*tokens, token])
        return token, text

    def revoke(self, identity: str) -> Token:
        """Revoke a token, which ends its connections. Raises UnknownToken, TokensUnusable."""
        with self._locked():
            tokens = self.all()
            for token in tokens:
                if token.id == identity:
                    self._write([other for other in tokens if other is not token])
                    return token
        raise UnknownToken(f"there is no token {identity!r}; cluster-remote token list shows all tokens")

    def check(self, text: str) -> Token | None:
        """Return the token with this text; None if there is none, or if it has expired.

        Takes the same time for right and wrong tokens. Raises TokensUnusable.
        """
        presented = _hash(text)
        found: Token | None = None
        for token in self.all():
            # Don't leave the loop early: the time it takes must not reveal which one matches.
            if hmac.compare_digest(token.sha256, presented):
                found = token
        return None if found is None or found.has_expired() else found

    def version(self) -> FileState | None:
        """Return a value that differs after every change, as a cheap check for changes."""
        return state_of(self.file)

    def all(self) -> list[Token]:
        """Return every token, oldest first. Looks at the file each time, so revoking is immediate.

        Raises TokensUnusable.
        """
        try:
            # A link could lead to a file that a client has stored, and a pipe would never end.
            descriptor = os.open(self.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                fault = _not_private(self.file.parent.stat()) or _not_private(status)
                if fault is not None:
                    raise TokensUnusable(
                        f"{self.file} {fault}, who could give anyone access: move it away and create new tokens with "
                        "cluster-remote token create"
                    )
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "it is not a regular file")
                state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                if self._read is not None and self._read[0] == state:
                    return list(self._read[1])
                content = file.read(_FILE_LIMIT + 1)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise TokensUnusable(
                f"{self.file} cannot be read: {error.strerror or error}; run cluster-remote "
                "serve and cluster-remote token as its owner"
            ) from None
        try:
            if len(content) > _FILE_LIMIT:
                raise ValueError("it is too large")
            tokens = [_read_token(line) for line in content.splitlines() if line]
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            raise TokensUnusable(
                f"{self.file} is damaged ({type(error).__name__}): move it away and create new tokens with "
                "cluster-remote token create"
            ) from None
        # Another change at the same moment could leave the same state behind.
        if time.time() - status.st_ctime > _SETTLED:
            self._read = state, tokens
        return list(tokens)

    def _write(self, tokens: list[Token]) -> None:
        lines = "".join(_written(token) + "\n" for token in tokens)
        try:
            # Created with mode 0600; concurrent readers see either the whole old file or the whole new one.
            descriptor, name = tempfile.mkstemp(prefix=".tokens-", dir=self.file.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(lines.encode())
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(self.file)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> TokensUnusable:
        return TokensUnusable(f"{self.file} cannot be written: {error.strerror or error}; check its permissions")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock out concurrent changes; the second one would undo the first."""
        try:
            make_private_directory(self.file.parent)
            if (fault := _not_private(self.file.parent.stat())) is not None:
                raise TokensUnusable(f"{self.file.parent} {fault}: remove it, or run this as its owner (chmod 700)")
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(self.file.with_name(self.file.name + ".lock"), flags, 0o600)
        except OSError as error:
            raise self._cannot_write(error) from None
        try:
            deadline = time.monotonic() + _LOCK_WAIT
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TokensUnusable(
                            f"another process has been changing {self.file} for {_LOCK_WAIT:.0f} seconds; try again"
                        ) from None
                    time.sleep(_LOCK_LOOK)
            yield
        finally:
            os.close(lock)


def _not_private(status: os.stat_result) -> str | None:
    """Return why users other than this one and root can change a file or directory; None if they cannot."""
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to user {status.st_uid}"
    return "can be changed by other users" if status.st_mode & 0o022 else None


def _written(token: Token) -> str:
    return json.dumps(
        {
            "id": token.id,
            "sha256": token.sha256,
            "mode": token.mode.value,
            "note": token.note,
            "created": token.created,
            "expires": token.expires,
            "only": None if token.only is None else token.only.text,
            "git": token.git,
            "own": token.own,
        }
    )


def _read_token(line: bytes) -> Token:
    """Parse one line. Raises AttributeError, ValueError, KeyError, TypeError."""
    found = json.loads(line)
    expires, only = found.get("expires"), found.get("only")
    token = Token(
        found["id"],
        Mode(found["mode"]),
        found["note"],
        int(found["created"]),
        found["sha256"],
        None if expires is None else int(expires),
        None if only is None else UUID(only),
        found.get("git", True) is True,
        found.get("own", False) is True,
    )
    if not (_ID.fullmatch(token.id) and _HASH.fullmatch(token.sha256) and isinstance(token.note, str)):
        raise ValueError("not a token")
    return token
