"""Large downloads are remembered from one run to the next."""

from __future__ import annotations

import time
from pathlib import Path

from cluster_remote.p2p.key import Key
from cluster_remote.remote.fetched import FetchedBefore

KEY, OTHER = Key("SHA256-s1--ab"), Key("SHA256-s1--c\udce4")


def test_fetched_keys_are_remembered_by_other_runs_for_a_day(tmp_path: Path) -> None:
    file = tmp_path / "cluster-remote" / "fetched"
    first = FetchedBefore(file)
    assert not first.times(KEY)
    first.add(KEY)
    first.add(OTHER)
    second = FetchedBefore(file)
    assert second.times(KEY)
    assert second.times(OTHER)
    second.add(KEY)
    assert (second.times(KEY), FetchedBefore(file).times(KEY), second.times(OTHER)) == (2, 2, 1)
    file.write_bytes(b"%d %b\nnonsense\n\n" % (int(time.time()) - 25 * 3600, bytes(KEY)))
    assert not FetchedBefore(file).times(KEY)


def test_the_file_of_fetched_keys_is_bounded_and_optional(tmp_path: Path) -> None:
    file = tmp_path / "fetched"
    file.write_bytes(b"".join(b"%d WORM-s1--%d\n" % (int(time.time()), number) for number in range(20_000)))
    assert FetchedBefore(file).times(Key("WORM-s1--19999"))
    assert len(file.read_bytes().splitlines()) == 10_000
    unwritable = FetchedBefore(Path("/proc/nothing/fetched"))
    unwritable.add(KEY)
    assert unwritable.times(KEY)
