"""The pictures in the documentation: generated, complete, and independent of the machine."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.environment import Environment

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
PICTURES = {picture.stem: picture for picture in (DOCS / "pictures").glob("*.svg")}
SHOWN = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")


def words(picture: str) -> str:
    """Return the lines of text in a picture."""
    return "\n".join(
        "".join(text.itertext()) for text in ElementTree.fromstring(picture).iter() if text.tag.endswith("text")
    )


def check_neutral(picture: str) -> None:
    """Raise AssertionError if a picture loads something or reveals where it was made."""
    assert "@font-face" not in picture
    assert re.findall(r"https?:[^\"'\s)]*", picture) == ["http://www.w3.org/2000/svg"]
    assert set(re.findall(r"url\((.)", picture)) <= {"#"}
    assert not re.search(r"<(image|script|foreignObject)|href=", picture)
    paths = set(re.findall(r"(?<![\w.])/\w+/\w+", words(picture).replace("\xa0", " ")))
    assert paths <= {"/home/tess"}


@pytest.mark.slow
def test_the_pictures_match_the_generator_up_to_their_figures(environment: Environment) -> None:
    with environment.applied():
        made = runpy.run_path(str(DOCS / "make_pictures.py"))["pictures"](files=9, keys=300)
    assert set(made) == set(PICTURES)
    for picture in made.values():
        check_neutral(picture)
    said = {name: words(picture).replace("\xa0", " ") for name, picture in made.items()}
    for name in ("status", "check"):
        assert "usb stick cannot be reached" in said[name]
        assert "cluster-remote repair everywhere" in said[name]
    assert "unreachable" in said["status"]
    assert "photo-003.jpg: not on nas in the hall" in said["check"]
    assert len(re.findall(r"\d+/309", said["progress"])) == 3
    assert not list(Path(environment.env["TMPDIR"]).iterdir())


@pytest.mark.parametrize("picture", [*sorted(PICTURES.values()), DOCS / "benchmark.svg"], ids=lambda path: path.stem)
def test_a_picture_loads_nothing_and_names_no_machine(picture: Path) -> None:
    check_neutral(picture.read_text("utf-8"))


def test_every_picture_is_shown_and_described() -> None:
    shown = set()
    for page in (TOP / "README.md", *DOCS.rglob("*.md")):
        for description, link in SHOWN.findall(page.read_text("utf-8")):
            assert len(description) > 40, f"{page.name}: {link} is described by {description!r}"
            shown.add((page.parent / link).resolve())
    # The chart is what cluster-remote bench --chart has drawn.
    assert shown == {picture.resolve() for picture in PICTURES.values()} | {DOCS / "benchmark.svg"}
