"""The pages agree with the program, and their links work."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from cluster_remote.transport.address import parse_address

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
PAGES = [TOP / "README.md", *sorted(DOCS.rglob("*.md"))]

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def test_the_command_reference_matches_the_code() -> None:
    made = runpy.run_path(str(DOCS / "make_cli.py"))["document"]()
    assert (DOCS / "reference" / "cli.md").read_text("utf-8") == made, "make docs"


def anchors(page: Path) -> set[str]:
    """Return the link targets of a page."""
    text = _FENCED.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_every_link_within_the_documentation_leads_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", page.read_text("utf-8"))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_in_the_sites_navigation() -> None:
    navigation = (TOP / "mkdocs.yml").read_text("utf-8")
    missing = [str(page.relative_to(DOCS)) for page in PAGES[1:] if f" {page.relative_to(DOCS)}\n" not in navigation]
    assert not missing


@pytest.mark.parametrize(
    "address",
    [
        "tls://nas.local:9420",
        "tor-annex::abcdefgh.onion:9418",
        "p2p-annex::cluster:unix:/run/gateway",
        "annex+http://nas.local:9417/git-annex/",
        "annex+https://nas.local:9417/git-annex/",
    ],
)
def test_every_form_on_the_addresses_page_is_read(address: str) -> None:
    assert str(parse_address(address)).startswith(address.removesuffix("/git-annex/"))
    scheme = re.match(r"[a-z0-9+-]+(?:://|::)", address)
    assert scheme is not None
    assert scheme[0] in (DOCS / "addresses.md").read_text("utf-8")


# Of git-annex(1), as of 10.20261026: remote.<name>.*
NODE_SETTINGS = """
    annex-adb annex-allow-encrypted-gitrepo annex-androiddirectory annex-androidserial annex-availability annex-bare
    annex-borgrepo annex-bup-split-options annex-buprepo annex-bwlimit annex-bwlimit-download annex-bwlimit-upload
    annex-checkuuid annex-cluster-gateway annex-cluster-node annex-compute annex-config-uuid annex-cost
    annex-cost-command annex-ddarrepo annex-directory annex-export-tracking annex-externaltype annex-fastcopy
    annex-forward-retry annex-gcrypt annex-git-lfs annex-glacier annex-gnupg-decrypt-options annex-gnupg-options
    annex-hooktype annex-httpalso annex-ignore annex-ignore-auto annex-ignore-command annex-mask
    annex-max-git-bundles annex-private annex-proxied-by annex-proxy annex-pull annex-push annex-rclone
    annex-readonly annex-retry annex-retry-delay annex-rsync-download-options annex-rsync-options
    annex-rsync-transport annex-rsync-upload-options annex-rsyncurl annex-s3 annex-s3-restore-days
    annex-s3-restore-tier annex-security-allow-unverified-downloads annex-shared-sop-command annex-shared-sop-profile
    annex-shell annex-speculate-present annex-ssh-options annex-stalldetection annex-stalldetection-download
    annex-stalldetection-upload annex-start-command annex-stop-command annex-sync annex-sync-command annex-tahoe
    annex-tracking-branch annex-trustlevel annex-uuid annex-verify annex-web annex-webdav annexUrl
"""


@pytest.mark.parametrize("setting", NODE_SETTINGS.split())
def test_every_remote_setting_is_on_the_node_settings_page(setting: str) -> None:
    assert f"`{setting}`" in (DOCS / "node-settings.md").read_text("utf-8")
