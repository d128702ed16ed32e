"""A locale that is not UTF-8 changes nothing, whatever is in the paths and names."""

from __future__ import annotations

import pytest

from tests.cli.command import Done, cluster_remote
from tests.remote.testbed import objects
from tests.support.environment import Environment
from tests.support.repositories import Repository, make_repository
from tests.support.slow import only_in_all


@pytest.mark.parametrize("locale", ["C", *only_in_all("POSIX", "xx_XX.UTF-8")])
def test_paths_and_names_with_umlauts_work_in_every_locale(environment: Environment, locale: str) -> None:
    top = environment.directory / "Größe & 'Maß'"
    top.mkdir()
    laptop = make_repository(environment, top / "Läptop", "Läptop von Jörg")
    disks = []
    for name in ("plätte.1", "Ünten"):
        environment.run("git", "clone", "--quiet", laptop.path, top / f"{name} ö")
        disks.append(Repository(top / f"{name} ö", environment))
        disks[-1].annex("init", "--quiet", f"Dose {name}")
        laptop.git("remote", "add", name, f"../{name} ö")
    told_locale = {"LC_ALL": locale}
    environment.env |= told_locale

    def ours(*arguments: str, code: int = 0) -> Done:
        return cluster_remote(laptop, *arguments, code=code, env=told_locale)

    ours("setup", "fotos", "--node", "plätte.1", "--node", "Ünten")
    keys = {laptop.add(name, name.encode()) for name in ("Bild ä.jpg", "tiefer/ßharf")}
    laptop.annex("copy", "--quiet", "--to", "fotos", ".")
    assert [objects(disk).keys() & keys for disk in disks] == [keys, keys]
    laptop.annex("drop", "--quiet", ".")
    laptop.annex("get", "--quiet", "--from", "fotos", ".")
    ours("check", "fotos")
    ours("status", "fotos")
    with disks[0].unplugged():
        key = laptop.add("drittes ñ", b"3")
        laptop.annex("copy", "--quiet", "--to", "fotos", ".")
        assert "plätte.1 ö" in ours("status", "fotos", code=1).out
    ours("repair", "fotos")
    assert disks[0].has_object(key)
    ours("node", "remove", "fotos", "plätte.1", "--drain")
    assert not objects(disks[0]).keys() & keys
