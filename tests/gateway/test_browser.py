"""The gateway in a real browser: its page, its downloads, and pages of other sites. Only in `make test-browser`."""

from __future__ import annotations

import html
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster_remote.p2p.server import Mode
from tests.gateway.test_web import CLIENT, Web, web_of
from tests.support.browser import Browser, browser_in
from tests.support.environment import Environment
from tests.support.processes import wait_until
from tests.support.repositories import Cluster, make_cluster

pytestmark = [pytest.mark.browser, pytest.mark.slow]

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'&lt;"
PHONE, DESKTOP = 360, 1280


@pytest.fixture(scope="module")
def browser(make_environment: Callable[[], Environment]) -> Iterator[Browser]:
    with browser_in(make_environment()) as made:
        yield made


@pytest.fixture(scope="module")
def public(make_environment: Callable[[], Environment]) -> Iterator[Web]:
    environment = make_environment()
    cluster = make_cluster(environment, environment.directory)
    cluster.gateway.annex("describe", "node1", HOSTILE)
    with web_of(cluster, "--public-read") as web:
        yield web


@pytest.fixture
def private(cluster: Cluster) -> Iterator[Web]:
    with web_of(cluster) as web:
        yield web


def stored(cluster: Cluster, name: str, content: bytes) -> str:
    """The key of a content on the first node, which the gateway knows to be there."""
    key = cluster.nodes[0].add(name, content)
    cluster.gateway.annex("setpresentkey", key, cluster.nodes[0].uuid, "1")
    return key


def with_login(web: Web, token: str) -> str:
    return web.url.replace("http://", f"http://any:{token}@") + "/"


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_person_reads_what_this_is_how_it_is_cloned_and_how_the_cluster_is(
    browser: Browser, public: Web, slash: str
) -> None:
    browser.visit(f"{public.url}{slash}")
    text = browser.text
    assert "This is a git-annex dataset" in text
    assert f"git clone {public.url} data\ncd data\ncluster-remote setup\ngit annex get .\n" in text
    assert text.count("in use") == 3
    assert all(node.uuid in text for node in public.cluster.nodes)
    assert browser.run("return document.title") == "data: a git-annex dataset"
    assert browser.console() == []


def test_what_others_have_called_a_node_is_shown_and_does_nothing(browser: Browser, public: Web) -> None:
    browser.visit(f"{public.url}/")
    assert HOSTILE in browser.text
    assert browser.run("return document.scripts.length + document.images.length + document.forms.length") == 0
    # Also where something slipped through, nothing would run.
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', arguments[0])", "<img src=x onerror=document.title='run'>"
    )
    assert wait_until(lambda: any("Content Security Policy" in line for line in browser.console()))
    assert browser.run("return document.title") == "data: a git-annex dataset"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_page_can_be_read_on_a_phone_and_in_the_dark(
    browser: Browser, public: Web, width: int, dark: bool, tmp_path: Path
) -> None:
    browser.looks(width=width, dark=dark)
    browser.visit(f"{public.url}/")
    # Nothing but the table scrolls sideways.
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    white, black = "rgb(255, 255, 255)", "rgb(0, 0, 0)"
    assert browser.run("return getComputedStyle(document.body).color") == (white if dark else black)
    browser.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 5000


def test_a_file_is_downloaded_by_its_link_and_its_parts_by_ranges(browser: Browser, public: Web) -> None:
    content = os.urandom(300_000)
    key = stored(public.cluster, "photo.html", content)
    link = f"{public.url}/git-annex/{public.cluster.uuid}/key/{key}"
    browser.visit(f"{public.url}/config")
    browser.run("location = arguments[0]", link)
    file = browser.downloads / key
    assert wait_until(lambda: file.exists() and file.stat().st_size == len(content), 20)
    assert file.read_bytes() == content
    part = browser.run(
        "return fetch(arguments[0], {headers: {Range: 'bytes=1000-1009'}}).then("
        "async got => [got.status, Array.from(new Uint8Array(await got.arrayBuffer()))])",
        link,
    )
    assert part == [206, list(content[1000:1010])]
    # It is not asked for again.
    again = "return fetch(arguments[0]).then(got => got.arrayBuffer()).then(all => all.byteLength)"
    assert [browser.run(again, link) for _ in range(2)] == [len(content)] * 2


def test_nobody_sees_anything_without_a_token_and_the_page_with_one(browser: Browser, private: Web) -> None:
    browser.visit(f"{private.url}/")
    assert "git clone" not in browser.text
    browser.visit(with_login(private, private.tokens[Mode.READ_ONLY]))
    assert "git clone" in browser.text
    assert private.tokens[Mode.READ_ONLY] not in browser.text


@contextmanager
def site(page: str) -> Iterator[str]:
    """Another site, every page of which is this one; its url."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_a_page_of_another_site_removes_nothing_and_reads_nothing_with_the_login_of_the_browser(
    browser: Browser, private: Web
) -> None:
    node, content = private.cluster.nodes[0], b"console.log('read')"
    key = stored(private.cluster, "kept.js", content)
    base = f"{private.url}/git-annex/{node.uuid}"
    removal, reading = f"{base}/v4/remove?key={key}&{CLIENT}", f"{base}/v4/key/{key}?{CLIENT}"
    browser.visit(with_login(private, private.tokens[Mode.READ_WRITE]))
    assert "git clone" in browser.text
    browser.console()
    form = f'<form method=post enctype=text/plain action="{html.escape(removal)}"></form>'
    with site(f'{form}<script src="{html.escape(reading)}"></script>') as other:
        browser.visit(other)
        assert not any("'read'" in line or '"read"' in line for line in browser.console())
        sent = "return fetch(arguments[0], {method: 'POST', mode: 'no-cors', credentials: 'include'}).then(() => 1)"
        assert browser.run(sent, removal) == 1
        got = "return fetch(arguments[0], {credentials: 'include'}).then(() => 'read', () => 'refused')"
        assert browser.run(got, reading) == "refused"
        browser.run("document.forms[0].submit()")
        assert wait_until(lambda: "for programs" in browser.text, 10)
    assert node.object_bytes(key) == content
