"""Run git once for a query, and read its configuration.

`git annex info` needs no more of this package for a serverless cluster, so this imports as little as possible.
"""

from __future__ import annotations

import os

from cluster_remote.annex import TOKEN_VARIABLE
from cluster_remote.annex.errors import CommandFailed
from cluster_remote.annex.waiting import run_and_wait
from cluster_remote.p2p.key import UUID, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Set
    from pathlib import Path

__all__ = ["GitConfig", "ask_git", "is_path", "is_true"]

# Seconds for a git command that only reads files of the repository.
_QUICK = 30.0


class GitConfig:
    """A snapshot of git's configuration. As in git, only the subsection of a name is case-sensitive."""

    def __init__(self, values: Mapping[str, tuple[str, ...]]) -> None:
        """Create a configuration from `values` by canonical name: section and last part in lower case."""
        self._values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GitConfig) and self._values == other._values

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    @classmethod
    def read(cls, *, cwd: Path | None = None, env: Mapping[str, str]) -> GitConfig:
        """Read the configuration for a directory and environment; not in an event loop. Raises CommandFailed."""
        return cls.parse(ask_git("config", "--list", "-z", cwd=cwd, env=env))

    @classmethod
    def of_git_dir(cls, git_dir: str) -> GitConfig:
        """Read the configuration of the repository with this git directory, like `read`."""
        return cls.read(env={**os.environ, "GIT_DIR": git_dir})

    @classmethod
    def parse_with_origins(cls, listing: bytes) -> tuple[GitConfig, frozenset[str]]:
        """Parse the output of `git config --list --show-origin -z` to the configuration and the files it came from."""
        fields = listing.split(b"\0")
        origins, entries = fields[0::2], fields[1::2]
        files = frozenset(decode(origin.removeprefix(b"file:")) for origin in origins if origin.startswith(b"file:"))
        return cls.parse(b"\0".join(entries)), files

    @classmethod
    def parse(cls, listing: bytes) -> GitConfig:
        """Parse the output of `git config --list -z`: `name LF value NUL`; a name alone means true."""
        values: dict[str, list[str]] = {}
        for entry in listing.split(b"\0"):
            if not entry:
                continue
            name, separator, value = decode(entry).partition("\n")
            values.setdefault(_canonical(name), []).append(value if separator else "true")
        return cls({name: tuple(found) for name, found in values.items()})

    def with_values(self, values: Mapping[str, str]) -> GitConfig:
        """Return a copy of the configuration with these values overridden."""
        ours = {_canonical(name): (value,) for name, value in values.items()}
        return GitConfig({**self._values, **ours})

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the effective value, which is the last one set."""
        values = self.all(name)
        return values[-1] if values else default

    def all(self, name: str) -> tuple[str, ...]:
        """Return all values of a name, in order."""
        return self._values.get(_canonical(name), ())

    def boolean(self, name: str, default: bool = False) -> bool:
        """Return a value as a boolean; see `is_true`."""
        value = self.get(name)
        return default if value is None else is_true(value)

    def remotes(self) -> list[str]:
        """Return the names of all remotes, in the order of their first mention."""
        return self.subsections("remote")

    def remote(self, name: str, key: str, default: str | None = None) -> str | None:
        """Return a setting of one remote: `remote("disk1", "annex-uuid")`."""
        return self.get(f"remote.{name}.{key}", default)

    def remote_uuid(self, name: str) -> UUID | None:
        """Return the UUID of a remote's repository; None if git-annex does not know it."""
        return UUID.if_valid(self.remote(name, "annex-uuid"))

    def directory_of(self, name: str) -> str | None:
        """Return a remote's url if it is a plain path, which may be relative to the repository; otherwise None."""
        url = self.url_of(name)
        return url if url and is_path(url) and not url.startswith("~") else None

    def ssh_options(self, name: str) -> tuple[str, ...]:
        """Return the user's options for ssh to a remote, as git-annex splits them."""
        return tuple((self.remote(name, "annex-ssh-options") or self.get("annex.ssh-options") or "").split())

    def url_of(self, name: str) -> str:
        """Return a remote's annexUrl, or else its url, rewritten as by git; empty if it has neither."""
        return self.rewritten(self.remote(name, "annexUrl") or self.remote(name, "url") or "")

    def rewritten(self, url: str) -> str:
        """Rewrite a url by `url.BASE.insteadOf` as git does: the longest matching prefix is replaced."""
        longest, replacement = "", ""
        for base in self.subsections("url"):
            for prefix in self.all(f"url.{base}.insteadOf"):
                if len(prefix) > len(longest) and url.startswith(prefix):
                    longest, replacement = prefix, base
        return replacement + url.removeprefix(longest) if longest else url

    def clusters_of(self, name: str) -> list[str]:
        """Return the names of the clusters that have a remote as a node (`annex-cluster-node`), in lower case."""
        return (self.remote(name, "annex-cluster-node") or "").lower().split()

    def nodes_of(self, cluster: UUID) -> list[str]:
        """Return the remotes that are configured as nodes of a cluster."""
        return self.nodes_of_any({name for name, uuid in self.clusters().items() if uuid == cluster})

    def nodes_of_any(self, names: Set[str]) -> list[str]:
        """Return the remotes that are configured as nodes of a cluster with one of these names."""
        return [remote for remote in self.remotes() if not names.isdisjoint(self.clusters_of(remote))]

    def is_unverified(self, name: str) -> bool:
        """Return whether git-annex has marked the configuration of a remote as not verified."""
        return self.remote(name, "annex-verified") not in (None, "verified")

    def clusters(self) -> dict[str, UUID]:
        """Return the clusters for which this repository is a gateway (`annex.cluster.NAME`), by name.

        Names are in lower case after the last dot, because git's variable names are case-insensitive.
        """
        found: dict[str, UUID] = {}
        for name in self._values:
            if name.startswith("annex.cluster."):
                try:
                    found[name.removeprefix("annex.cluster.")] = UUID(self._values[name][-1])
                except ValueError:
                    continue
        return found

    def subsections(self, section: str) -> list[str]:
        """Return the subsections of a section (`[url "base"]`), in the order of their first mention."""
        found: dict[str, None] = {}
        for name in self._values:
            first, _, rest = name.partition(".")
            subsection, separator, _ = rest.rpartition(".")
            if first == section and separator:
                found[subsection] = None
        return list(found)


def is_true(value: str) -> bool:
    """Return what a value means as a boolean, as in git: true, yes, on and nonzero numbers. Anything else is false."""
    value = value.strip().lower()
    return value in ("true", "yes", "on") or (value.lstrip("+-").isdecimal() and int(value) != 0)


def is_path(url: str) -> bool:
    """Return whether a url is a path for git, which has no colon before its first slash."""
    return ":" not in url.partition("/")[0]


def _canonical(name: str) -> str:
    section, _, rest = name.partition(".")
    subsection, separator, key = rest.rpartition(".")
    return f"{section.lower()}.{subsection}{separator}{key.lower()}"


def ask_git(*arguments: str, cwd: Path | None = None, env: Mapping[str, str]) -> bytes:
    """Return the output of a git command that only reads the repository; not in an event loop. Raises CommandFailed."""
    argv = ("git", *arguments)
    environment = {name: value for name, value in env.items() if name != TOKEN_VARIABLE}
    done = run_and_wait(argv, cwd=cwd, env=environment, timeout=_QUICK)
    if done.returncode != 0:
        raise CommandFailed(argv, done.returncode, f"ended with exit code {done.returncode}", done.complaint)
    return done.stdout
