"""Memory does not grow with the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.remote.driver import Driver
from tests.remote.testbed import Testbed
from tests.support.slow import only_in_all

LIMIT = 100 * 1024**2
LARGE = 300 * 1024**2
# More than 32 bit numbers can say.
LARGER = 2 * 1024**3 + 5


def peak(annex: Driver) -> int:
    """The most memory that the program has had so far, in bytes."""
    status = Path(f"/proc/{annex.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def marks(size: int) -> dict[int, bytes]:
    """What is not zero in a file: at its beginning, where 31 bits end if it is so long, and at its end."""
    return {0: b"begin", min(2**31 - 3, size // 2): b"middle", size - 2: b"nd"}


def marked(file: Path, size: int) -> dict[int, bytes]:
    """What a file has where the marks should be."""
    with file.open("rb") as opened:
        found = {}
        for position, mark in marks(size).items():
            opened.seek(position)
            found[position] = opened.read(len(mark))
        return found


@pytest.mark.slow
@pytest.mark.parametrize("size", [LARGE, *only_in_all(LARGER)])
def test_a_large_file_round_trips_in_little_memory(own_testbed: Testbed, tmp_path: Path, size: int) -> None:
    node = own_testbed.cluster.nodes[0]
    file = tmp_path / "file"
    with file.open("wb") as opened:
        opened.truncate(size)
        for position, mark in marks(size).items():
            opened.seek(position)
            opened.write(mark)
    key = f"WORM-s{size}-m1--large"
    driver = own_testbed.driver(node.uuid)
    driver.forked = False
    with driver as annex:
        annex.prepare()
        assert annex.ask(f"TRANSFER STORE {key} {file}", within=240) == f"TRANSFER-SUCCESS STORE {key}"
        assert peak(annex) < LIMIT
        stored = node.object_path(key)
        assert stored is not None
        assert stored.stat().st_size == size
        assert marked(stored, size) == marks(size)
        ups = list(annex.progress)
        back = tmp_path / "back"
        assert annex.ask(f"TRANSFER RETRIEVE {key} {back}", within=240) == f"TRANSFER-SUCCESS RETRIEVE {key}"
        assert peak(annex) < LIMIT
        assert back.stat().st_size == size
        assert marked(back, size) == marks(size)
        assert annex.ask(f"REMOVE {key}") == f"REMOVE-SUCCESS {key}"
    # Progress was told now and then, of the whole.
    downs = annex.progress[len(ups) :]
    for told in (ups, downs):
        assert told == sorted(told)
        assert told[-1] <= size
        assert 1 <= len(told) <= 1000
