"""cluster-remote demo: use a cluster of throwaway repositories.

Every command is run exactly as printed, with git-annex's own output below it. The demo checks each result and stops at
the first one that is wrong.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from cluster_remote.annex.errors import CommandFailed
from cluster_remote.annex.waiting import run_and_wait
from cluster_remote.cli.exitcodes import FAILED

__all__ = ["demo"]

# Seconds for one command, which usually takes less than one.
_TIMEOUT = 120


class DemoFailed(Exception):
    """A step did not have the expected result."""


def demo(
    keep: bool = typer.Option(False, "--keep", help="Keep the repositories, and print where they are."),
) -> None:
    """Build a cluster of real repositories in a temporary directory; store content there, get it back and drop it.

    Touches nothing outside that directory. The exit code says whether every step worked.

    Example: cluster-remote demo
    """
    for program in ("git", "git-annex", "git-annex-shell", "git-annex-remote-cluster"):
        if shutil.which(program) is None:
            typer.secho(f"{program} is not on PATH; the demo needs it.", fg="red", err=True)
            raise typer.Exit(FAILED)
    with _directory(keep) as directory:
        try:
            _serverless(Stage(directory / "without-a-server"))
            _gateway(Stage(directory / "with-a-gateway"))
        except DemoFailed as error:
            typer.secho(f"\nThe demo failed: {error}", fg="red", err=True)
            raise typer.Exit(FAILED) from None
    typer.secho("\nEvery step worked.", fg="green", bold=True)


@contextmanager
def _directory(keep: bool) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="cluster-remote-demo-")).resolve()
    try:
        yield directory
    finally:
        if keep:
            typer.echo(f"\nThe repositories are in {directory}; their HOME is {directory}/home.")
        else:
            # git-annex write-protects its objects.
            for folder, _folders, _files in os.walk(directory):
                Path(folder).chmod(0o700)
            shutil.rmtree(directory)


@dataclass(frozen=True)
class Stage:
    """Repositories below one directory, with a HOME and a git configuration of their own."""

    directory: Path

    def title(self, text: str) -> None:
        typer.secho(f"\n{text}", fg="cyan", bold=True)

    def run(self, where: str, command: str, *, fails: bool = False, show: bool = True) -> str:
        """Run a command line in one of the repositories and return its output. Raises DemoFailed."""
        if show:
            typer.secho(f"{where}$ {command}", bold=True)
        try:
            done = run_and_wait(
                shlex.split(command),
                cwd=self.directory / where,
                env=self._environment(),
                timeout=_TIMEOUT,
                merged=True,
            )
        except CommandFailed as error:
            raise DemoFailed(str(error)) from None
        output = done.stdout.decode("utf-8", "replace")
        if show:
            for line in output.split("\n"):
                # git-annex redraws its progress with carriage returns; show only the final state.
                final = line.rstrip().rpartition("\r")[2]
                if final.strip():
                    typer.echo("    " + final)
        if bool(done.returncode) != fails:
            if not show:
                typer.echo(output)
            raise DemoFailed(f"{command} exited with code {done.returncode}")
        return output

    def check(self, what: str, condition: bool) -> None:
        """Print what was checked. Raises DemoFailed if it is false."""
        if not condition:
            raise DemoFailed(f"{what}: not true")
        typer.secho(f"    ✓ {what}", fg="green")

    def objects(self, node: str) -> list[bytes]:
        """Return the contents in a repository's object directory."""
        found = (self.directory / node / ".git" / "annex" / "objects").glob("*/*/*/*")
        return [path.read_bytes() for path in found if path.is_file()]

    def everywhere(self) -> bool:
        """Return whether every node holds the demo's one content."""
        return all(self.objects(node) == [_PHOTO] for node in _NODES)

    def prepare(self) -> None:
        """Create the directory and the configuration."""
        (self.directory / "home").mkdir(parents=True)
        for setting in ("user.name Demo", "user.email demo@example.com", "init.defaultBranch main"):
            self.run(".", f"git config --global {setting}", show=False)

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        return {**inherited, "HOME": str(self.directory / "home"), "GIT_CONFIG_NOSYSTEM": "1"}


_NODES = ("node1", "node2", "node3")
_PHOTO = b"a photograph that nobody wants to lose\n"


def _repository(stage: Stage, name: str, description: str, origin: str = "") -> None:
    stage.run(".", f"git clone -q {origin} {name}" if origin else f"git init -q {name}", show=False)
    stage.run(name, f"git annex init '{description}'", show=False)
    if not origin:
        stage.run(name, "git commit -q --allow-empty -m start", show=False)


def _nodes_of(stage: Stage, repository: str) -> None:
    for number, node in enumerate(_NODES, 1):
        _repository(stage, node, f"disk {number}", repository)
        stage.run(repository, f"git remote add {node} ../{node}")
        stage.run(repository, f"git fetch -q {node}", show=False)
    # Any command that looks at the remotes makes git-annex learn their UUIDs.
    stage.run(repository, "git annex info --fast", show=False)


def _serverless(stage: Stage) -> None:
    stage.title("WITHOUT A SERVER: a repository with three disks as its remotes")
    stage.prepare()
    _repository(stage, "laptop", "laptop")
    _nodes_of(stage, "laptop")
    stage.title("One command turns them into a cluster, and the cluster into a remote")
    stage.run("laptop", "cluster-remote setup photos --node node1 --node node2 --node node3")
    _use_cluster(stage, "laptop", "photos")

    stage.title("A missing disk does not stop the others; when it is back, one command fills it")
    (stage.directory / "node2").rename(stage.directory / "unplugged")
    stage.run("laptop", "git annex copy --to photos photo.jpg")
    found = stage.run("laptop", "git annex whereis photo.jpg")
    stage.check("it is on disk 1 and disk 3", "disk 1" in found and "disk 3" in found and "disk 2" not in found)
    (stage.directory / "unplugged").rename(stage.directory / "node2")
    stage.run("laptop", "cluster-remote repair photos photo.jpg")
    stage.check("the content is in all three nodes", stage.everywhere())


def _gateway(stage: Stage) -> None:
    stage.title("WITH A GATEWAY: a repository with three nodes behind it, made with git-annex's own commands")
    stage.prepare()
    _repository(stage, "gateway", "gateway")
    _nodes_of(stage, "gateway")
    stage.run("gateway", "git annex initcluster photos")
    for node in _NODES:
        stage.run("gateway", f"git config remote.{node}.annex-cluster-node photos")
    stage.run("gateway", "git annex updatecluster")

    stage.title("A clone, and in it one command that makes the cluster a remote")
    _repository(stage, "laptop", "laptop", "gateway")
    stage.run("laptop", f"cluster-remote setup photos {stage.directory}/gateway")
    stage.run("laptop", "cluster-remote ping photos")
    _use_cluster(stage, "laptop", "photos")


def _use_cluster(stage: Stage, here: str, remote: str) -> None:
    photo = stage.directory / here / "photo.jpg"
    photo.write_bytes(_PHOTO)
    stage.run(here, "git annex add photo.jpg", show=False)
    stage.run(here, "git commit -q -m photo", show=False)
    stage.run(here, "git annex numcopies 3", show=False)

    stage.title("One upload reaches every node, and each of them counts as a copy")
    stage.run(here, f"git annex copy --to {remote} photo.jpg")
    stage.check("the content is in all three nodes", stage.everywhere())
    found = stage.run(here, "git annex whereis photo.jpg")
    stage.check("the location log names the three nodes", all(f"disk {number}" in found for number in (1, 2, 3)))

    stage.title("Three copies are enough to drop the file here and get it back")
    stage.run(here, "git annex drop photo.jpg")
    stage.check("the content is gone from here", not stage.objects(here))
    stage.run(here, "git annex get photo.jpg")
    stage.check("the same bytes are back", photo.read_bytes() == _PHOTO)

    stage.title("This would need a fourth copy, so git-annex refuses")
    stage.run(here, "git annex drop --numcopies 4 photo.jpg", fails=True)
    stage.check("the content is still here", photo.read_bytes() == _PHOTO)

    stage.title("Moving the file to the cluster and back")
    stage.run(here, f"git annex move --to {remote} photo.jpg")
    stage.check("it is on all nodes and no longer here", stage.everywhere() and not stage.objects(here))
    stage.run(here, "git annex get photo.jpg")

    stage.title("Dropping it from the cluster removes it from every node")
    stage.run(here, "git annex numcopies 1", show=False)
    stage.run(here, f"git annex drop --from {remote} photo.jpg")
    stage.check("no node has the content", not any(stage.objects(node) for node in _NODES))
    found = stage.run(here, "git annex whereis photo.jpg")
    stage.check("the location log names no node", "disk" not in found)
