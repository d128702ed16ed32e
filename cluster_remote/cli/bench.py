"""cluster-remote bench: compare speed with git-annex itself on this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.table import Table

from cluster_remote import __version__
from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.waiting import run_and_wait
from cluster_remote.bench.cases import (
    Load,
    Results,
    run_limit,
    run_slow_lines,
    run_slow_node,
    run_start_up,
    run_transfers,
)
from cluster_remote.bench.existing import measure
from cluster_remote.bench.many import grows, run_clients, run_keys
from cluster_remote.bench.report import as_json, chart, profiled, rows
from cluster_remote.bench.testbed import WAYS, BenchFailed, Testbed
from cluster_remote.cli.completion import remotes
from cluster_remote.cli.exitcodes import FAILED
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.render import console, say
from cluster_remote.cli.target import connected
from cluster_remote.p2p.key import decode

__all__ = ["bench"]

_ALL = ("large", "small", "limit", "start", "slow", "lines", "keys", "clients")


def _sizes(text: str) -> int:
    """Parse a size such as 10k, 64M or 1G (powers of 1024) into bytes."""
    units = {"k": 10, "m": 20, "g": 30}
    number, unit = (text[:-1], units.get(text[-1:].lower())) if text[-1:].isalpha() else (text, 0)
    if unit is None or not number.isdigit() or not int(number):
        raise typer.BadParameter(f"{text!r} is not a size such as 10k, 64M or 1G")
    return int(number) << unit


def bench(
    target: str = typer.Argument(
        "",
        metavar="[NAME|URL]",
        help="Measure this remote or address instead of a cluster made for it.",
        autocompletion=remotes,
        show_default=False,
    ),
    case: list[str] = typer.Option([], "--case", help=f"What to measure: {', '.join(_ALL)} (default: all)."),
    way: list[str] = typer.Option([], "--way", help="Ways to reach the cluster (default: all; see docs/benchmark.md)."),
    rounds: int = typer.Option(3, min=1, help="How often to measure each; medians are shown."),
    nodes: list[int] = typer.Option([3], min=1, max=64, help="Number of nodes in the cluster. Can be repeated."),
    size: str = typer.Option("1G", help="Size of the large file."),
    files: int = typer.Option(1000, min=1, help="Number of small files (10 kB each)."),
    keys: list[int] = typer.Option(
        [100, 1000, 10_000, 100_000], min=1, help="Numbers of keys for --case keys. Can be repeated."
    ),
    clients: list[int] = typer.Option([1, 10, 50], min=1, help="Numbers of clients of serve. Can be repeated."),
    jobs: list[int] = typer.Option([1], "--jobs", "-J", min=1, help="git-annex's -J for the small files."),
    directory: Path = typer.Option(None, help="Where to create the repositories (default: a temporary directory)."),
    json_file: Path = typer.Option(None, "--json", help="Save all results as JSON."),
    chart_file: Path = typer.Option(None, "--chart", help="Draw the medians as SVG."),
    profile: Path = typer.Option(
        None, help="Profile the special remote: save profiles in this directory and show a summary."
    ),
) -> None:
    """Compare transfers through git-annex's own gateway with transfers through this program, on this machine.

    Creates its own cluster of real repositories and removes it afterwards. Only the ratios matter: timings from
    different machines or runs are not comparable.

    With NAME|URL it creates nothing: it stores random contents there, checks, fetches and removes them, one after the
    other (only --case large and small).

    Exit codes: 0 measured, 1 a measurement failed, 2 wrong usage, 3 no answer, 4 not in a repository, 130 interrupted.

    Example: cluster-remote bench --case small --files 200 --rounds 1

    Example: cluster-remote bench mycluster --size 100M --files 100
    """
    cases = set(case) or set(_ALL)
    ways = way or list(WAYS)
    for option, given, known in (("--case", cases, _ALL), ("--way", ways, WAYS)):
        if unknown := set(given).difference(known):
            raise BadSettings(f"{option} {', '.join(sorted(unknown))} is unknown; choose from {', '.join(known)}")
    large, small = Load("1 file of " + size, 1, _sizes(size)), Load(f"{files} files of 10 kB", files, 10_000)
    results = Results()
    if target:
        if way or not set(case) <= {"large", "small"}:
            raise BadSettings("NAME|URL works only with --case large and small, and without --way")
        loads = [load for name, load in (("large", large), ("small", small)) if name in cases]
        run(_measure_existing, target, loads, rounds, results, directory)
        _report(results, json_file, chart_file)
        return
    if profile is not None:
        profile.mkdir(parents=True, exist_ok=True)
    top = Path(tempfile.mkdtemp(prefix="cluster-remote-bench-", dir=directory)).resolve()
    measurements = _Measurements(top, cases, ways, rounds, nodes, jobs, large, small, profile, results)
    try:
        measurements.run(keys, clients)
    except BenchFailed as error:
        say(f"cluster-remote: {error}", err=True)
        raise typer.Exit(FAILED) from None
    finally:
        shutil.rmtree(top, ignore_errors=True)
    _report(results, json_file, chart_file)
    if profile is not None:
        say(profiled(sorted(profile.glob("*.profile"))))


@dataclass(frozen=True)
class _Measurements:
    """The measurements on clusters that are created for them, below the directory `top`."""

    top: Path
    cases: set[str]
    ways: list[str]
    rounds: int
    nodes: list[int]
    jobs: list[int]
    large: Load
    small: Load
    profile: Path | None
    results: Results

    def run(self, keys: list[int], clients: list[int]) -> None:
        """Measure all cases. Raises BenchFailed."""
        if self.cases & {"large", "small", "limit", "start"}:
            for number in self.nodes:
                testbed = self._testbed(number)
                try:
                    self._transfers(testbed)
                finally:
                    testbed.close()
            self._growth_with_nodes()
        if "slow" in self.cases:
            run_slow_node(self._testbed, Load("1 file of 64M", 1, 64 << 20), self.rounds, self.results, _tell)
        if "lines" in self.cases:
            load = self.large if self.large.size < 256 << 20 else Load("1 file of 256M", 1, 256 << 20)
            run_slow_lines(self._testbed, load, self.rounds, self.results, _tell)
        if "keys" in self.cases:
            run_keys(self._testbed, keys, self.nodes[0], self.ways, self.rounds, self.results, _tell)
        if "clients" in self.cases:
            testbed = self._testbed(self.nodes[0])
            try:
                testbed.serve()
                run_clients(testbed, clients, self.small, self.results, _tell)
            finally:
                testbed.close()

    def _testbed(self, nodes: int, lines: Mapping[int, float] | None = None) -> Testbed:
        directory = Path(tempfile.mkdtemp(prefix="testbed-", dir=self.top))
        testbed = Testbed(directory, nodes, lines or {}, self.profile and self.profile.resolve())
        testbed.build()
        return testbed

    def _transfers(self, testbed: Testbed) -> None:
        """Measure the transfers, their limit and the start-up on one cluster."""
        by_way = {way: testbed.client(way) for way in self.ways}
        if "large" in self.cases:
            run_transfers(testbed, by_way, self.large, [1], self.rounds, self.results, _tell, ("up", "down"))
        if "small" in self.cases:
            run_transfers(testbed, by_way, self.small, self.jobs, self.rounds, self.results, _tell)
        if "limit" in self.cases:
            for load, case in ((self.large, "large"), (self.small, "small")):
                if case in self.cases:
                    run_limit(testbed, load, self.rounds, self.results, _tell)
        ours = next((by_way[way] for way in ("serverless", "remote", "gateway") if way in by_way), None)
        if "start" in self.cases and ours is not None and testbed.nodes == self.nodes[0]:
            run_start_up(testbed, ours, self.rounds, self.results, _tell)

    def _growth_with_nodes(self) -> None:
        if "small" in self.cases:
            for step in ("up", "down", "check", "drop"):
                for job in self.jobs:
                    cases_by_nodes = {n: f"{self.small.name} {step}, {n} nodes, -J{job}" for n in self.nodes}
                    grows(self.results, "nodes", cases_by_nodes, _tell)


async def _measure_existing(
    text: str, loads: list[Load], rounds: int, results: Results, directory: Path | None
) -> None:
    try:
        async with connected(text, writing=True) as target:
            if target.view.settings is not None and target.view.settings.encryption != "none":
                raise BadSettings(f"{text} is encrypted, and this command would store unencrypted content there")
            for load in loads:
                await measure(target.session, target.label, load, rounds, results, _tell, directory)
    except BenchFailed as error:
        say(f"cluster-remote: {error}", err=True)
        raise typer.Exit(FAILED) from None


def _tell(text: str) -> None:
    say(text, err=True)


def _report(results: Results, json_file: Path | None, chart_file: Path | None) -> None:
    _show(results)
    if json_file is not None:
        json_file.write_text(as_json(results, _versions()))
    if chart_file is not None:
        chart_file.write_text(chart(results))


def _show(results: Results) -> None:
    table = Table("case", "way", "median", "times as fast as git-annex", "our memory", "processes")
    for row in rows(results):
        for number, (way, seconds) in enumerate(row.seconds.items()):
            ratio = row.ratio(way)
            memory = results.median(row.case, way, "our memory (bytes)")
            processes = results.median(row.case, way, "processes")
            table.add_row(
                "" if number else row.case,
                way,
                f"{seconds:.3f} s",
                "" if ratio is None else f"{ratio:.2f}",
                f"{memory / 2**20:.0f} MiB" if memory else "",
                f"{processes:.0f}" if processes else "",
            )
        if row.floor is not None:
            table.add_row("", "floor (bare and limit)", f"{row.floor:.3f} s")
    console().print(table)


def _versions() -> dict[str, str]:
    annex = run_and_wait(("git-annex", "version", "--raw"), timeout=30)
    return {"git-annex": decode(annex.stdout).strip(), "git-annex-remote-cluster": __version__}
