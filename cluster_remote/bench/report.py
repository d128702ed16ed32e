"""Present the results as a table, as JSON and as a chart, all from the same figures."""

from __future__ import annotations

import io
import json
import os
import platform
import pstats
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cluster_remote.bench.cases import Results

__all__ = ["Row", "as_json", "chart", "profiled", "rows"]

_NATIVE = ("native-ssh", "native-http")
_COLOURS = {
    "native": "#8d99ae",
    "remote": "#ffb703",
    "serverless": "#2a9d8f",
    "gateway": "#457b9d",
    "remote-http": "#fb8500",
    "gateway-http": "#1d3557",
    "client-http": "#6d597a",
    "plain": "#c9ada7",
    "bare": "#777777",
    "limit": "#333333",
    "floor": "#000000",
}


@dataclass(frozen=True)
class Row:
    """One case: medians in seconds by way. `native` is the faster of git-annex's own ways through its gateway.

    `floor` is the minimum for any special remote: git-annex's own share (`bare`) plus the nodes' (`limit`), which do
    not overlap for small files; None if one of them was not measured.
    """

    case: str
    seconds: dict[str, float]
    native: float | None
    floor: float | None

    def ratio(self, way: str) -> float | None:
        """Return the speed relative to git-annex's own client and gateway."""
        seconds = self.seconds.get(way)
        return None if self.native is None or not seconds else self.native / seconds


def rows(results: Results) -> list[Row]:
    """Return the cases in the order of measurement."""
    found = []
    for case, ways in results.figures.items():
        seconds = {way: median for way in ways if (median := results.median(case, way)) is not None}
        native = min((seconds[way] for way in _NATIVE if way in seconds), default=None)
        parts = [seconds[way] for way in ("bare", "limit") if way in seconds]
        found.append(Row(case, seconds, native, sum(parts) if len(parts) == 2 else None))
    return found


def as_json(results: Results, versions: dict[str, str]) -> str:
    """Return all results of every round, the medians, and each way's speed relative to git-annex."""
    return json.dumps(
        {
            "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
            "versions": versions,
            "figures": results.figures,
            "cases": [
                {
                    "case": row.case,
                    "median seconds": row.seconds,
                    "floor in seconds": row.floor,
                    "times as fast as git-annex": {
                        way: round(ratio, 3) for way in row.seconds if (ratio := row.ratio(way)) is not None
                    },
                }
                for row in rows(results)
            ],
        },
        indent=1,
    )


def profiled(files: Sequence[Path], most: int = 30) -> str:
    """Sum up the profiles of several processes, as a table of the functions with the most time of their own."""
    if not files:
        return "no process of the special remote exited cleanly, so there is no profile"
    text = io.StringIO()
    pstats.Stats(*map(str, files), stream=text).strip_dirs().sort_stats("tottime").print_stats(most)
    # The table is preceded by the names of all files, one per line.
    return f"{len(files)} processes: " + text.getvalue().partition("\n\n")[2].strip()


def chart(results: Results) -> str:
    """Draw the medians as bars, each case on its own scale, as SVG."""
    width, label, bar = 900, 300, 16
    parts: list[str] = []
    y = 10
    for row in rows(results):
        bars = [(way, seconds) for way, seconds in row.seconds.items() if way not in _NATIVE]
        if row.native is not None:
            bars.insert(0, ("native", row.native))
        if row.floor is not None:
            bars.append(("floor", row.floor))
        longest = max(seconds for _, seconds in bars)
        y += 24
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{escape(row.case)}</text>')
        y += 8
        for way, seconds in bars:
            length = (width - label - 80) * seconds / longest
            colour = _COLOURS.get(way, "#999999")
            parts.append(f'<text x="{label - 10}" y="{y + 12}" text-anchor="end">{escape(way)}</text>')
            parts.append(f'<rect x="{label}" y="{y}" width="{length:.1f}" height="{bar}" fill="{colour}"/>')
            parts.append(f'<text x="{label + length + 6:.1f}" y="{y + 12}">{seconds:.2f} s</text>')
            y += bar + 4
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 20}" font-family="sans-serif" '
        f'font-size="13"><rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )
