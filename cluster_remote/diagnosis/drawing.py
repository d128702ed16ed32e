"""A conversation drawn as a sequence diagram: as text and as SVG.

Time runs downwards. The program is on the left, and to its right is one line per session, in order of appearance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from cluster_remote.diagnosis.conversation import Heading, Sessions, TracedMessage, named
from cluster_remote.p2p.text import printable

__all__ = ["MOST_MESSAGES", "Arrow", "Diagram", "as_svg", "as_text", "lay_out"]

MOST_MESSAGES = 1000
"""The most messages to draw; a longer diagram is unreadable."""

_US = "git-annex-remote-cluster"
# The first characters of a checksum or UUID are enough to tell it from others.
_CHECKSUM = re.compile(r"(--[0-9a-fA-F]{8})[0-9a-fA-F]{24,}")
_UUID = re.compile(r"\b([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")


@dataclass(frozen=True, slots=True)
class Arrow:
    """A message: `lane` is the session's number, `seconds` count from the start of the command."""

    lane: int
    out: bool
    label: str
    note: str
    seconds: float
    full: str


@dataclass(frozen=True, slots=True)
class Diagram:
    """What to draw. `lanes` are the names of the sessions; `left_out` is the number of messages not drawn."""

    title: str
    lanes: tuple[str, ...]
    arrows: tuple[Arrow, ...]
    left_out: int


def lay_out(heading: Heading, messages: Iterable[TracedMessage], left_out: int = 0) -> Diagram:
    """Lay out a conversation, as text or SVG; `left_out` more messages follow the given ones."""
    sessions = Sessions(heading.names)
    arrows: list[Arrow] = []
    for said in messages:
        lane, _new = sessions.number(said)
        note = f"{said.data} bytes" if said.data is not None else named(said.message, heading.names)
        arrows.append(
            Arrow(
                lane, said.out, _short(said.message), note, said.time - heading.started, printable(said.message, 4000)
            )
        )
    return Diagram(printable(" ".join(heading.command)), tuple(sessions.labels), tuple(arrows), left_out)


def _short(message: str) -> str:
    return printable(_UUID.sub(r"\1…", _CHECKSUM.sub(r"\1…", message)))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


# As text

_LANE = 44


def as_text(diagram: Diagram, *, plain: bool = False) -> Iterator[str]:
    """Draw the diagram in monospaced characters. `plain`: in ASCII."""
    for line in _lines(diagram):
        yield line.translate(_ASCII).encode("ascii", "replace").decode() if plain else line


_ASCII = {ord("│"): "|", ord("─"): "-", ord("▶"): ">", ord("◀"): "<", ord("…"): "~"}


def _lines(diagram: Diagram) -> Iterator[str]:
    width = _LANE * len(diagram.lanes)
    margin = 12
    if diagram.title:
        yield f"$ {diagram.title}"
    for number, lane in enumerate(diagram.lanes, 1):
        yield f"{'':{margin}}#{number} {lane}"
    yield (
        f"{'seconds':>{margin - 2}}  {_US}".ljust(margin + _LANE - 1)
        + "".join(f"#{number}".ljust(_LANE) for number in range(1, len(diagram.lanes) + 1)).rstrip()
    )
    bare = _lifelines(diagram.lanes, width)
    yield f"{'':{margin}}{bare}"
    for arrow in diagram.arrows:
        yield f"{arrow.seconds:{margin - 2}.3f}  {_arrow(bare, arrow)}".rstrip()
        if arrow.note:
            yield f"{'':{margin}}{_note(bare, arrow)}".rstrip()
    if diagram.left_out:
        yield f"{'':{margin}}… {diagram.left_out} more messages not drawn"


def _lifelines(lanes: Sequence[str], width: int) -> str:
    cells = [" "] * (width + 1)
    for lane in range(len(lanes) + 1):
        cells[lane * _LANE] = "│"
    return "".join(cells)


def _arrow(bare: str, arrow: Arrow) -> str:
    """Draw the arrow between us and a lane, with the message next to the lane."""
    end = arrow.lane * _LANE
    label = _cut(arrow.label, _LANE - 8)
    inner = "─" * (end - _LANE) + f" {label} ".center(_LANE - 1, "─")
    inner = inner[:-1] + "▶" if arrow.out else "◀" + inner[1:]
    return f"│{inner}│{bare[end + 1 :]}"


def _note(bare: str, arrow: Arrow) -> str:
    start = (arrow.lane - 1) * _LANE + 1
    return bare[:start] + _cut(arrow.note, _LANE - 3).center(_LANE - 1) + bare[start + _LANE - 1 :]


# As SVG

_STEP, _COLUMN, _LEFT, _TOP = 34, 330, 110, 74
_STYLE = (
    "text{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px;fill:#222}"
    ".n{fill:#777;font-size:11px}.h{font-weight:bold}"
    "line{stroke:#555;stroke-width:1.3}.l{stroke:#bbb;stroke-dasharray:4 4}rect{fill:#fff}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.n{fill:#999}line{stroke:#aaa}.l{stroke:#555}rect{fill:#181818}}"
)


def as_svg(diagram: Diagram) -> Iterator[str]:
    """Draw the diagram as SVG, in lines. Text can be selected; hovering shows the whole message."""
    lanes = max(1, len(diagram.lanes))
    width = _LEFT + _COLUMN * lanes + 120
    height = _TOP + _STEP * (len(diagram.arrows) + 2)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{_xml(diagram.title)}">'
    )
    yield f"<style>{_STYLE}</style>"
    yield '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    yield '<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>'
    yield f'<rect width="{width}" height="{height}"/>'
    yield f'<text x="10" y="22" class="h">{_xml(_cut(diagram.title, width // 8))}</text>'
    for lane, name in enumerate(("", *diagram.lanes)):
        x = _LEFT + lane * _COLUMN
        yield f'<line class="l" x1="{x}" y1="{_TOP - 12}" x2="{x}" y2="{height - 10}"/>'
        label = f"#{lane} {name}" if lane else _US
        yield f'<text x="{x}" y="{_TOP - 20}" text-anchor="middle" class="h">{_xml(_cut(label, _COLUMN // 8))}</text>'
    for row, arrow in enumerate(diagram.arrows, 1):
        yield from _svg_arrow(arrow, _TOP + row * _STEP)
    if diagram.left_out:
        yield f'<text x="{_LEFT}" y="{height - 14}" class="n">… {diagram.left_out} more messages not drawn</text>'
    yield "</svg>"


def _svg_arrow(arrow: Arrow, y: int) -> Iterator[str]:
    here, there = _LEFT, _LEFT + arrow.lane * _COLUMN
    start, end = (here, there) if arrow.out else (there, here)
    middle = there - _COLUMN // 2
    yield f'<text x="{here - 12}" y="{y + 4}" text-anchor="end" class="n">{arrow.seconds:.3f} s</text>'
    yield f'<line x1="{start}" y1="{y}" x2="{end}" y2="{y}" marker-end="url(#a)"/>'
    yield (
        f'<text x="{middle}" y="{y - 5}" text-anchor="middle"><title>{_xml(arrow.full)}</title>'
        f"{_xml(_cut(arrow.label, _COLUMN // 8))}</text>"
    )
    if arrow.note:
        yield f'<text x="{middle}" y="{y + 13}" text-anchor="middle" class="n">{_xml(_cut(arrow.note, 44))}</text>'


def _xml(text: str) -> str:
    # A single character that XML does not allow would make the whole document invalid.
    safe = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return escape(safe)
