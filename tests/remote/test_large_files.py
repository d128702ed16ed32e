"""Memory does not grow with the file."""

from __future__ import annotations

import re
from pathlib import Path

from tests.remote.driver import Driver
from tests.remote.sites import Site

SIZE = 2 * 1024**3 + 5
LIMIT = 100 * 1024**2
# What is not zero in the file: at its beginning, across the limit of 32 bit numbers, at its end.
MARKS = {0: b"begin", 2**31 - 3: b"middle", SIZE - 2: b"nd"}
PART = SIZE - 128 * 1024**2


def peak(annex: Driver) -> int:
    """The most memory that the program has had so far, in bytes."""
    status = Path(f"/proc/{annex.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def marked(file: Path) -> dict[int, bytes]:
    """What a file has where the marks should be."""
    with file.open("rb") as opened:
        found = {}
        for position, mark in MARKS.items():
            opened.seek(position)
            found[position] = opened.read(len(mark))
        return found


def test_two_gibibytes_go_to_a_node_and_come_back_in_little_memory(own_site: Site, tmp_path: Path) -> None:
    node = own_site.cluster.nodes[0]
    file = tmp_path / "file"
    with file.open("wb") as opened:
        opened.truncate(SIZE)
        for position, mark in MARKS.items():
            opened.seek(position)
            opened.write(mark)
    key = f"WORM-s{SIZE}-m1--large"
    with own_site.driver(node.uuid) as annex:
        annex.prepare()
        assert annex.ask(f"TRANSFER STORE {key} {file}", within=240) == f"TRANSFER-SUCCESS STORE {key}"
        assert peak(annex) < LIMIT
        stored = node.object_path(key)
        assert stored is not None
        assert stored.stat().st_size == SIZE
        assert marked(stored) == MARKS
        # The first part is there already, so the rest is large, but not as large.
        back = tmp_path / "back"
        with back.open("wb") as opened:
            opened.truncate(PART)
        assert annex.ask(f"TRANSFER RETRIEVE {key} {back}", within=120) == f"TRANSFER-SUCCESS RETRIEVE {key}"
        assert peak(annex) < LIMIT
        assert back.stat().st_size == SIZE
        assert marked(back)[SIZE - 2] == b"nd"
        assert annex.ask(f"REMOVE {key}") == f"REMOVE-SUCCESS {key}"
    # Progress was told now and then, of the whole and not of the part that was left.
    ups, downs = [at for at in annex.progress if at < PART], [at for at in annex.progress if at >= PART]
    assert ups == sorted(ups)
    assert downs[-1] <= SIZE
    assert 2 <= len(annex.progress) <= 2000
