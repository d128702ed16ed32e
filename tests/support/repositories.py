"""Real repositories and clusters, and what is true of them, read without asking any remote."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import os
import select
import shutil
import subprocess
import time
import uuid as uuids
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from .environment import Environment, temporary_environment
from .processes import end_group

DESCRIPTIONS = ("first disk (attic)", "second disk (cellar)", "NAS: shelf 3", "the bucket", "old laptop")
"""The nodes' descriptions in uuid.log, which differ from the names of their remotes."""

GATEWAY_DESCRIPTION = "gateway (hall)"


@contextlib.contextmanager
def unplugged(directory: Path) -> Iterator[None]:
    """Have a directory missing for as long as the context is open."""
    hidden = directory.rename(directory.with_name(f"{directory.name} (unplugged)"))
    try:
        yield
    finally:
        hidden.rename(directory)


@dataclass(frozen=True)
class Repository:
    """A git-annex repository below an environment's directory."""

    path: Path
    environment: Environment

    def git(
        self,
        *arguments: str | bytes | Path,
        check: bool = True,
        input: bytes | None = None,
        timeout: float = 60.0,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run git here; see `Environment.run`."""
        return self.environment.run(
            "git", *arguments, cwd=self.path, check=check, input=input, timeout=timeout, env=env
        )

    def annex(
        self,
        *arguments: str | bytes | Path,
        check: bool = True,
        input: bytes | None = None,
        timeout: float = 60.0,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run git-annex here; see `Environment.run`."""
        return self.git("annex", *arguments, check=check, input=input, timeout=timeout, env=env)

    def config(self, name: str) -> str | None:
        """A value of the git configuration as it holds here, None where it is not set."""
        done = self.git("config", "--get", name, check=False)
        return os.fsdecode(done.stdout).removesuffix("\n") if done.returncode == 0 else None

    @functools.cached_property
    def uuid(self) -> str:
        """The UUID of this repository.

        Raises:
            AssertionError: it has none.
        """
        found = self.config("annex.uuid")
        assert found, f"{self.path} has no annex.uuid"
        return found

    def write(self, name: str | bytes, content: bytes) -> Path:
        """Write a file into the work tree, without adding it; its directories are made."""
        path = self.path / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not through an annexed file of that name, which is a link to an object.
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        return path

    def add(self, name: str | bytes, content: bytes, backend: str | None = None) -> str:
        """Write a file and `git annex add` it, without a commit; return its key.

        Args:
            name: relative to the work tree; any bytes that a file name may have.
            content: what is in it.
            backend: that of the key, git-annex's default where not given.
        """
        self.write(name, content)
        options = () if backend is None else (f"--backend={backend}",)
        # Not as an argument: git-annex hands arguments on to git without the bytes that are not UTF-8.
        self.annex("add", "--quiet", *options, "--batch", "-z", input=os.fsencode(name) + b"\0")
        return self.key(name)

    def key(self, name: str | bytes) -> str:
        """Return the key of an annexed file; bytes that are not UTF-8 appear as surrogate escapes.

        A locked file is a link that names its key, so git-annex is only asked about an unlocked one.

        Raises:
            AssertionError: the file is not annexed.
        """
        path = self.path / os.fsdecode(name)
        if path.is_symlink():
            target = path.readlink()
            assert "annex/objects/" in str(target), f"{path} leads to {target}"
            return key_of(target.name)
        return os.fsdecode(self.annex("lookupkey", "--", name).stdout).removesuffix("\n")

    def set_key(self, key: str, content: bytes) -> None:
        """Store content under a given key (`git annex setkey`), without a file that links to it."""
        file = self.environment.directory / "tmp" / "content"
        file.write_bytes(content)
        self.annex("setkey", key, file)

    def object_path(self, key: str) -> Path | None:
        """Where the content of a key lies in this repository; None if it is not there."""
        name = glob.escape(_file_name(key))
        for top in (self.path / ".git/annex/objects", self.path / "annex/objects"):
            for path in top.glob(f"*/*/{name}/{name}"):
                if path.is_file():
                    return path
        return None

    def has_object(self, key: str) -> bool:
        """Whether the content of a key lies in annex/objects of this repository, whatever the log says."""
        return self.object_path(key) is not None

    def leave_partial(self, key: str, part: bytes) -> None:
        """Leave a partial file, as an interrupted upload or download does."""
        partial = self.path / ".git/annex/tmp" / key
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(part)

    def lose_object(self, key: str) -> None:
        """Remove the content of a key behind git-annex's back: its location log still names this repository.

        Raises:
            AssertionError: it is not there.
        """
        path = self._object(key)
        path.parent.chmod(0o755)
        path.unlink()

    def damage_object(self, key: str, content: bytes | None = None) -> None:
        """Replace the content of a key behind git-annex's back, by default with one that differs in a byte.

        Raises:
            AssertionError: it is not there.
        """
        path = self._object(key)
        if content is None:
            damaged = bytearray(path.read_bytes())
            damaged[len(damaged) // 2] ^= 0xFF
            content = bytes(damaged)
        path.chmod(0o644)
        path.write_bytes(content)

    def object_bytes(self, key: str) -> bytes:
        """The content of a key, as it lies in this repository.

        Raises:
            AssertionError: it is not there.
        """
        return self._object(key).read_bytes()

    def _object(self, key: str) -> Path:
        path = self.object_path(key)
        assert path is not None, f"{self.path} has no content of {key}"
        return path

    @contextlib.contextmanager
    def unplugged(self) -> Iterator[None]:
        """Have this repository's directory missing for as long as the context is open."""
        with unplugged(self.path):
            yield

    def locations(self, key: str) -> set[str]:
        """The UUIDs that the location log names for a key. No remote is asked.

        Branches fetched from elsewhere are merged first, as any git-annex command would do it.
        """
        folders = hashlib.md5(os.fsencode(key), usedforsecurity=False).hexdigest()
        log = self.log(f"{folders[:3]}/{folders[3:6]}/{_file_name(key)}.log")
        newest: dict[str, tuple[Decimal, str]] = {}
        for line in log.splitlines():
            stamp, status, uuid = line.split(" ")
            entry = (Decimal(stamp.removesuffix("s")), status)
            newest[uuid] = max(newest.get(uuid, entry), entry)
        return {uuid for uuid, (_, status) in newest.items() if status == "1"}

    def descriptions(self) -> dict[str, str]:
        """What uuid.log calls each repository and cluster it knows, by UUID."""
        newest: dict[str, tuple[Decimal, str]] = {}
        for line in self.log("uuid.log").splitlines():
            uuid, rest = line.split(" ", 1)
            description, stamp = rest.rsplit(" timestamp=", 1)
            entry = (Decimal(stamp.removesuffix("s")), description)
            newest[uuid] = max(newest.get(uuid, entry), entry)
        return {uuid: description for uuid, (_, description) in newest.items()}

    def _merge(self) -> None:
        """Have git-annex merge what was fetched, if anything is left to merge."""
        left = self.git("for-each-ref", "--no-merged=git-annex", "--format=%(refname)").stdout
        if any(ref.endswith(b"/git-annex") for ref in left.splitlines()):
            # Any command that reads a log merges fetched branches; this one touches nothing else.
            self.annex("readpresentkey", "WORM--any", self.uuid, check=False)

    def log(self, path: str) -> str:
        """Return a file of the git-annex branch as git-annex sees it: with fetched branches and journals merged."""
        self._merge()
        journals = (self.path / ".git/annex/journal", self.path / ".git/annex/journal-private")
        name = path.replace("_", "__").replace("/", "_")
        found = [
            (journal / name).read_text("utf-8", "surrogateescape") for journal in journals if (journal / name).exists()
        ]
        if not (journals[0] / name).exists():
            branch = self.git("cat-file", "blob", f"git-annex:{path}", check=False)
            found.append(os.fsdecode(branch.stdout) if branch.returncode == 0 else "")
        return "".join(found)


ESCAPES = (("&", "&a"), ("%", "&s"), (":", "&c"), ("/", "%"))
"""How git-annex turns a key into a file name, in this order."""


def _file_name(key: str) -> str:
    """Return what git-annex calls a key's content and its logs."""
    for character, escape in ESCAPES:
        key = key.replace(character, escape)
    return key


def key_of(name: str) -> str:
    """Return the key that git-annex keeps under a file name."""
    for character, escape in reversed(ESCAPES):
        name = name.replace(escape, character)
    return name


@dataclass(frozen=True)
class Cluster:
    """A cluster of local repositories and its gateway.

    Attributes:
        gateway: has every node as a remote, node1, node2 and so on.
        nodes: in that order.
        uuid: of the cluster.
        name: of the cluster.
    """

    gateway: Repository
    nodes: list[Repository]
    uuid: str
    name: str

    def clone(self, name: str = "client", source: str | None = None) -> Repository:
        """A clone of the gateway beside it, initialised, that has merged the gateway's git-annex branch.

        Args:
            name: of the directory; the description is different, as with the nodes.
            source: what to clone from, the gateway's path by default.
        """
        template = _template(len(self.nodes), self.name)
        if source is None and self.uuid == template.uuid and _references(self.gateway) == _references(template.gateway):
            # Nothing has happened here yet: every clone of that name is the same.
            copied = _template_of_clone(len(self.nodes), self.name, name)
            return copy_repository(copied, self.gateway.environment, self.gateway.path.parent)
        return _clone(self, name, source or self.gateway.path)

    def holders(self, key: str) -> list[bool]:
        """For each node, whether the content of a key really lies there."""
        return [node.has_object(key) for node in self.nodes]


def _clone(cluster: Cluster, name: str, source: str | Path) -> Repository:
    environment = cluster.gateway.environment
    path = cluster.gateway.path.parent / name
    environment.run("git", "clone", "--quiet", source, path)
    clone = Repository(path, environment)
    clone.annex("init", "--quiet", f"{name} (desk)")
    clone.annex("merge", "--quiet")
    return clone


def _references(repository: Repository) -> dict[str, bytes]:
    """Every branch of a repository with what it points to, and what git-annex has not committed yet."""
    git = repository.path / ".git"
    files = [git / "HEAD", git / "packed-refs"]
    for below in ("refs", "annex/journal", "annex/journal-private"):
        files += (git / below).rglob("*")
    return {str(file.relative_to(git)): file.read_bytes() for file in files if file.is_file()}


def make_repository(environment: Environment, path: Path, description: str) -> Repository:
    """A new repository with one empty commit."""
    environment.run("git", "init", "--quiet", path)
    repository = Repository(path, environment)
    repository.git("commit", "--quiet", "--allow-empty", "--message", "begin")
    repository.annex("init", "--quiet", description)
    return repository


def make_cluster(environment: Environment, directory: Path, nodes: int = 3, name: str = "mycluster") -> Cluster:
    """A cluster of local repositories: `directory`/gateway, /node1, /node2 and so on.

    It is built once in a process of tests, then copied: clusters of the same size and name have the same UUIDs.
    """
    template = _template(nodes, name)
    directory.mkdir(parents=True, exist_ok=True)
    for repository in (template.gateway, *template.nodes):
        copy_repository(repository, environment, directory)
    return cluster_in(environment, directory, template.uuid, nodes, name)


templates = contextlib.ExitStack()
"""Templates, built once per test process and copied for each test; closed when the tests are over."""


def copy_repository(template: Repository, environment: Environment, directory: Path) -> Repository:
    """Copy a repository of a template into another directory, and point its remotes to the copies there."""
    path = directory / template.path.name
    # Without git's samples of hooks, which are most of its files.
    shutil.copytree(template.path, path, symlinks=True, ignore=shutil.ignore_patterns("*.sample"))
    _rewrite_paths(path / ".git", template.path.parent, directory)
    return Repository(path, environment)


@functools.cache
def _template(nodes: int, name: str) -> Cluster:
    environment = templates.enter_context(temporary_environment())
    templates.callback(_template.cache_clear)
    return _build_cluster(environment, environment.directory, nodes, name)


@functools.cache
def _template_of_clone(nodes: int, name: str, clone: str) -> Repository:
    cluster = _template(nodes, name)
    templates.callback(_template_of_clone.cache_clear)
    return _clone(cluster, clone, cluster.gateway.path)


def _build_cluster(environment: Environment, directory: Path, nodes: int, name: str) -> Cluster:
    gateway = make_repository(environment, directory / "gateway", GATEWAY_DESCRIPTION)
    for number in range(1, nodes + 1):
        node = Repository(directory / f"node{number}", environment)
        environment.run("git", "clone", "--quiet", gateway.path, node.path)
        known = DESCRIPTIONS[number - 1 : number]
        node.annex("init", "--quiet", known[0] if known else f"disk {number} (shelf)")
        gateway.git("remote", "add", f"node{number}", node.path)
        gateway.git("config", f"remote.node{number}.annex-cluster-node", name)
    gateway.git("fetch", "--quiet", "--all")
    gateway.annex("initcluster", "--quiet", name)
    gateway.annex("updatecluster", "--quiet")
    # The nodes learn of each other, as they do wherever people synchronise.
    gateway.annex("sync", "--quiet", "--no-content")
    uuid = gateway.config(f"annex.cluster.{name}")
    assert uuid is not None, f"git annex initcluster left no annex.cluster.{name}"
    return cluster_in(environment, directory, uuid, nodes, name)


def cluster_in(environment: Environment, directory: Path, uuid: str, nodes: int, name: str) -> Cluster:
    """The cluster whose repositories lie in a directory."""
    places = [Repository(directory / f"node{number}", environment) for number in range(1, nodes + 1)]
    return Cluster(Repository(directory / "gateway", environment), places, uuid, name)


def _rewrite_paths(git_directory: Path, before: Path, after: Path) -> None:
    """Replace a directory's path wherever git or git-annex stores it: remote urls, FETCH_HEAD, reflogs, journals."""
    files = [git_directory / "config", git_directory / "FETCH_HEAD", *(git_directory / "annex").glob("*.log")]
    for below in ("logs", "annex/journal", "annex/journal-private"):
        files += (git_directory / below).rglob("*")
    for file in files:
        if file.is_file():
            file.write_bytes(file.read_bytes().replace(os.fsencode(before), os.fsencode(after)))


@contextlib.contextmanager
def locked(repository: Repository, key: str, within: float = 20.0) -> Iterator[None]:
    """Hold the content of a key locked in a repository from another process (LOCKCONTENT).

    Nobody can remove the content meanwhile; at the end the lock is given up and the process is gone.

    Args:
        within: seconds to wait for each answer.

    Raises:
        AssertionError: it could not be locked.
    """
    process = repository.environment.popen(
        "git-annex-shell", "p2pstdio", repository.path, str(uuids.uuid4()), "--uuid", repository.uuid
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            greeting = _line(process.stdout.fileno(), within)
            assert greeting == f"AUTH-SUCCESS {repository.uuid}".encode(), greeting
            process.stdin.write(b"LOCKCONTENT " + os.fsencode(key) + b"\n")
            process.stdin.flush()
            answer = _line(process.stdout.fileno(), within)
            assert answer == b"SUCCESS", f"LOCKCONTENT {key} in {repository.path} was answered {answer!r}"
            yield
            process.stdin.write(b"UNLOCKCONTENT\n")
            process.stdin.close()
            process.wait(within)
        finally:
            end_group(process.pid)


def _line(descriptor: int, within: float) -> bytes:
    """Read a line of a peer, without its newline; return what has arrived if the peer closes or takes too long."""
    deadline = time.monotonic() + within
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        byte = os.read(descriptor, 1) if readable else b""
        if not byte:
            break
        line += byte
    return line.removesuffix(b"\n")
