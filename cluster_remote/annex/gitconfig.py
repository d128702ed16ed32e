"""What git says when it is asked once, and its configuration.

All that `git annex info` needs of this package where the remote is a cluster of its own repository, which is why it
imports as little as it can.
"""

from __future__ import annotations

from cluster_remote.annex.errors import CommandFailed
from cluster_remote.p2p.key import UUID, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["GitConfig", "ask_git"]

# Seconds for a git command that only reads files of the repository.
_QUICK = 30.0


class GitConfig:
    """git's configuration at one moment. Names are compared by git's rule: only the subsection has case."""

    def __init__(self, values: Mapping[str, tuple[str, ...]]) -> None:
        """`values` by canonical name: the section and the last part in lower case."""
        self._values = values

    @classmethod
    def read(cls, *, cwd: Path | None = None, env: Mapping[str, str]) -> GitConfig:
        """What git tells in that directory and environment. Raises CommandFailed."""
        return cls.parse(ask_git("config", "--list", "-z", cwd=cwd, env=env))

    @classmethod
    def parse_with_origins(cls, listing: bytes) -> tuple[GitConfig, frozenset[str]]:
        """Read the output of `git config --list --show-origin -z`: the configuration, and the files it came from."""
        fields = listing.split(b"\0")
        origins, entries = fields[0::2], fields[1::2]
        files = frozenset(decode(origin.removeprefix(b"file:")) for origin in origins if origin.startswith(b"file:"))
        return cls.parse(b"\0".join(entries)), files

    @classmethod
    def parse(cls, listing: bytes) -> GitConfig:
        """Reads the output of `git config --list -z`: `name LF value NUL`; a name alone means true."""
        values: dict[str, list[str]] = {}
        for entry in listing.split(b"\0"):
            if not entry:
                continue
            name, separator, value = decode(entry).partition("\n")
            values.setdefault(_canonical(name), []).append(value if separator else "true")
        return cls({name: tuple(all_of_it) for name, all_of_it in values.items()})

    def with_values(self, values: Mapping[str, str]) -> GitConfig:
        """Return the same configuration with these values set besides, which then count."""
        ours = {_canonical(name): (value,) for name, value in values.items()}
        return GitConfig({**self._values, **ours})

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value that counts, which is the last one set."""
        values = self.all(name)
        return values[-1] if values else default

    def all(self, name: str) -> tuple[str, ...]:
        """Every value of a name that is set more than once, in order."""
        return self._values.get(_canonical(name), ())

    def boolean(self, name: str, default: bool = False) -> bool:
        """A value as git reads truth: true, yes, on and numbers other than 0. Anything else is false."""
        value = self.get(name)
        if value is None:
            return default
        value = value.strip().lower()
        return value in ("true", "yes", "on") or (value.lstrip("+-").isdecimal() and int(value) != 0)

    def remotes(self) -> list[str]:
        """The names of all remotes, in the order in which the configuration first mentions them."""
        return self.subsections("remote")

    def remote(self, name: str, key: str, default: str | None = None) -> str | None:
        """A setting of one remote: `remote("disk1", "annex-uuid")`."""
        return self.get(f"remote.{name}.{key}", default)

    def clusters(self) -> dict[str, UUID]:
        """The clusters that this repository is a gateway of (`annex.cluster.NAME`): name to UUID.

        The last part of a name is in lower case, for it is a variable of git's configuration.
        """
        found: dict[str, UUID] = {}
        for name in self._values:
            if name.startswith("annex.cluster."):
                try:
                    found[name.removeprefix("annex.cluster.")] = UUID.parse(self._values[name][-1])
                except ValueError:
                    continue
        return found

    def subsections(self, section: str) -> list[str]:
        """What stands in quotes after a section's name (`[url "base"]`), in the order in which each first comes up."""
        found: dict[str, None] = {}
        for name in self._values:
            first, _, rest = name.partition(".")
            subsection, separator, _ = rest.rpartition(".")
            if first == section and separator:
                found[subsection] = None
        return list(found)


def _canonical(name: str) -> str:
    section, _, rest = name.partition(".")
    subsection, separator, key = rest.rpartition(".")
    return f"{section.lower()}.{subsection}{separator}{key.lower()}"


def ask_git(*arguments: str, cwd: Path | None = None, env: Mapping[str, str]) -> bytes:
    """The output of a git command that only reads files of a repository. Raises CommandFailed."""
    import subprocess

    argv = ("git", *arguments)
    try:
        done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, stdin=subprocess.DEVNULL, timeout=_QUICK)
    except subprocess.TimeoutExpired as e:
        raise CommandFailed(argv, None, f"did not end within {_QUICK:g} seconds") from e
    except OSError as e:
        raise CommandFailed(argv, None, f"cannot be started: {e.strerror or e}") from e
    if done.returncode != 0:
        complaint = decode(done.stderr[-4096:]).strip()
        raise CommandFailed(argv, done.returncode, f"ended with exit code {done.returncode}", complaint)
    return done.stdout
