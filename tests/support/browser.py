"""A real browser: Debian's Chromium without a window, spoken with by WebDriver (chromium-driver)."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .environment import Environment
from .processes import end_group, wait_until
from .sockets import free_port

__all__ = ["Browser", "browser_in"]

_SECONDS = 60.0
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=OptimizationHints,MediaRouter",
    "--no-proxy-server",
)


class Browser:
    """One window."""

    def __init__(self, port: int, downloads: Path) -> None:
        self._port = port
        self.downloads = downloads
        """Where it puts what it downloads."""
        self._session = ""

    def begin(self, profile: Path) -> None:
        """Open the window, with a profile that nobody has used."""
        options = {
            "args": [*_ARGUMENTS, f"--user-data-dir={profile}"],
            "prefs": {"download.default_directory": str(self.downloads)},
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def end(self) -> None:
        self._in_session("DELETE", "")

    def visit(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self._in_session("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """What a script returns in the page, or the promise that it returns comes to."""
        return self._in_session("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    @property
    def text(self) -> str:
        """What a person reads in the page."""
        return str(self.run("return document.documentElement.innerText"))

    def console(self) -> list[str]:
        """What the browser has complained of since this was last asked."""
        return [
            f"{each['level']}: {each['message']}" for each in self._in_session("POST", "/se/log", {"type": "browser"})
        ]

    def command(self, name: str, **parameters: object) -> Any:
        """A command of the DevTools protocol."""
        return self._in_session("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def looks(self, *, width: int, dark: bool = False) -> None:
        """Be a screen of so many pixels from now on, of somebody who likes it dark or not."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, file: Path) -> None:
        """Save what it shows as PNG."""
        file.write_bytes(base64.b64decode(self._in_session("GET", "/screenshot")))

    def _in_session(self, method: str, path: str, body: object = None) -> Any:
        return self._ask(method, f"/session/{self._session}{path}", body)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, None if method != "POST" else json.dumps(body or {}))
            answer = json.loads(connection.getresponse().read())["value"]
        assert not (isinstance(answer, dict) and "error" in answer), f"{path}: {answer['error']}: {answer['message']}"
        return answer


@contextlib.contextmanager
def browser_in(environment: Environment) -> Iterator[Browser]:
    """Run a browser, whose files are in the environment.

    Raises:
        AssertionError: there is none.
    """
    driver = shutil.which("chromedriver")
    assert driver, "these tests need a browser: apt-get install chromium chromium-driver"
    port, downloads = free_port(), environment.directory / "downloads"
    downloads.mkdir()
    with (environment.directory / "browser.log").open("wb") as log:
        process = environment.popen(
            driver, f"--port={port}", stdin=subprocess.DEVNULL, stdout=log.fileno(), stderr=log.fileno()
        )
    browser = Browser(port, downloads)

    def ready() -> bool:
        with contextlib.suppress(OSError):
            return bool(browser._ask("GET", "/status")["ready"])
        return False

    try:
        assert wait_until(ready, _SECONDS), "chromedriver does not answer"
        browser.begin(environment.directory / "profile")
        yield browser
        browser.end()
    finally:
        end_group(process.pid)
        process.wait(_SECONDS)
