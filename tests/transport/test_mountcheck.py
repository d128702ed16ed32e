"""Noticing that a served directory was replaced, without a thread where all mounts are local."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster_remote.transport import mountcheck
from cluster_remote.transport.mountcheck import MountCheck, has_local_mounts

pytestmark = pytest.mark.anyio

MOUNTS = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 0:27 / /mnt/my\\040disk rw shared:7 master:1 - vfat /dev/sdb1 rw
31 27 0:31 / /nas rw,relatime - nfs4 nas:/ rw
32 31 8:17 / /nas/local rw,relatime - xfs /dev/sdc1 rw
33 27 0:33 / /auto rw,relatime - autofs systemd-1 rw
34 33 8:18 / /auto rw,relatime - ext4 /dev/sdd1 rw
35 27 0:35 / /ntfs rw,relatime - fuseblk /dev/sde1 rw
36 27 0:6 / /dev rw - devtmpfs udev rw
37 36 0:26 / /dev/shm rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("place", "at_hand"),
    [
        ("/", True),
        ("/srv/annex", True),
        ("/mnt/my disk/annex", True),
        ("/nas", False),
        ("/nas/annex", False),
        ("/nasal", True),
        ("/nas/local/annex", False),
        ("/auto/annex", False),
        ("/ntfs/annex", False),
        ("/dev/shm/annex", True),
    ],
)
def test_a_path_has_local_mounts_only_if_all_mounts_on_the_way_are_local(place: str, at_hand: bool) -> None:
    assert has_local_mounts(place, MOUNTS) == at_hand


@pytest.mark.parametrize("mounts", ["", "nonsense\n", "27 1 254:0 / / rw,relatime ext4 /dev/vda rw\n"])
def test_a_path_with_unknown_mounts_is_not_at_hand(mounts: str) -> None:
    assert not has_local_mounts("/srv", mounts)


@pytest.mark.parametrize("kind", ["ext4", "nfs4"])
async def test_a_replaced_directory_is_noticed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountcheck, "_mounts", lambda: f"1 0 0:1 / / rw - {kind} somewhere rw\n")
    place = tmp_path / "disk"
    place.mkdir()
    looking = MountCheck(str(place))
    await looking.begin()
    if kind == "ext4":
        looking._thread.join(10)
    assert looking.is_unchanged()
    assert looking._thread.is_alive() == (kind == "nfs4")
    place.rename(tmp_path / "taken away")
    assert not looking.is_unchanged()
    place.mkdir()
    assert not looking.is_unchanged()
    place.rmdir()
    (tmp_path / "taken away").rename(place)
    assert looking.is_unchanged()
    looking.end()


@pytest.mark.parametrize("place", ["link", "link/below"])
async def test_a_link_that_leads_elsewhere_is_noticed(tmp_path: Path, place: str) -> None:
    """git-annex-shell follows links on each request, so it would answer from the other repository."""
    for disk in ("one", "other"):
        (tmp_path / disk / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("one")
    looking = MountCheck(str(tmp_path / place))
    await looking.begin()
    assert looking.is_unchanged()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("other")
    assert not looking.is_unchanged()
    looking.end()
