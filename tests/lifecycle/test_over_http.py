"""Setting up a cluster behind HTTP: as the gateway's page says, and with every kind of wrong url."""

from __future__ import annotations

import html
import http.server
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster_remote.p2p.server import Mode
from tests.gateway.test_web import Web, cloned, web_of
from tests.support.certificates import make_certificate
from tests.support.environment import Environment
from tests.support.forked import run_forked
from tests.support.repositories import Cluster, Repository, make_cluster
from tests.support.slow import only_in_all
from tests.support.sockets import free_port, serve_p2phttp


@pytest.fixture(scope="module")
def web(make_environment: Callable[[], Environment]) -> Iterator[Web]:
    environment = make_environment()
    with web_of(make_cluster(environment, environment.directory), "--public-read") as made:
        yield made


@pytest.fixture(scope="module")
def clone(web: Web) -> Repository:
    """A clone over HTTP whose git has no login."""
    return cloned(web, None, "reader")


def setup(
    repository: Repository, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    env = {"NO_COLOR": "1", **(env or {})}
    return run_forked(repository.environment, "setup", *arguments, cwd=repository.path, check=False, env=env)


@pytest.fixture(scope="module")
def published(web: Web) -> bytes:
    """The content of values.txt, which the dataset has and only the nodes hold."""
    gateway = web.cluster.gateway
    content = b"measured\n"
    key = gateway.add("values.txt", content)
    gateway.git("commit", "--quiet", "--message", "values")
    gateway.git("push", "--quiet", ".", "HEAD:refs/heads/main", check=False)
    for node in web.cluster.nodes:
        node.set_key(key, content)
        gateway.annex("setpresentkey", key, node.uuid, "1")
    gateway.annex("merge", "--quiet")
    gateway.annex("drop", "--force", "--quiet", "values.txt")
    return content


def _by_somebody_new(environment: Environment, commands: str) -> bytes:
    """Run commands in another HOME, with no more in it than git wants; what they print."""
    # This test's server is at an address of this machine.
    environment.run("git", "config", "--global", "annex.security.allowed-ip-addresses", "all")
    done = environment.run("bash", "-e", "-c", commands, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout


@pytest.mark.slow
def test_the_commands_on_the_gateways_page_give_the_dataset_to_somebody_new(
    web: Web, published: bytes, environment: Environment
) -> None:
    found = re.search(rb"<pre>(.*?)</pre>", web.ask("GET", "/").body, re.DOTALL)
    assert found is not None
    commands = html.unescape(found[1].decode())
    assert f"git clone {web.url} data" in commands
    printed = _by_somebody_new(environment, commands)
    assert (environment.directory / "data/values.txt").read_bytes() == published
    assert b"initremote mycluster ok" in printed
    assert b"from mycluster" in printed


@pytest.mark.slow
@pytest.mark.parametrize("with_setup", [True, False])
def test_the_commands_of_the_guide_give_the_dataset_to_somebody_new(
    web: Web, published: bytes, environment: Environment, with_setup: bool
) -> None:
    serve, _, _, everybody, _ = _guide()
    # Like the fixture's, save for the port.
    assert serve == "cluster-remote serve --public-read --listen http://127.0.0.1:8080/data\n"
    commands = everybody.replace("https://data.example.com/data", web.url)
    assert f"git clone {web.url}\n" in commands
    if not with_setup:
        commands = commands.replace("cluster-remote setup\n", "")
    printed = _by_somebody_new(environment, commands)
    assert (environment.directory / "data/values.txt").read_bytes() == published
    assert (b"from mycluster" if with_setup else b"from origin-") in printed


@pytest.mark.slow
def test_the_token_of_the_guide_lets_somebody_add_files(web: Web, environment: Environment) -> None:
    gateway = web.cluster.gateway
    done = gateway.environment.run("bash", "-e", "-c", _guide()[4], cwd=gateway.path)
    token = done.stdout.decode().split()[-1]
    helper = f"!f() {{ test $1 = get && echo username=x && echo password={token}; }}; f"
    environment.run("git", "config", "--global", "credential.helper", helper)
    _by_somebody_new(
        environment,
        f"git clone -q {web.url}; cd data; echo new >new.txt; git annex add -q new.txt;"
        "git annex copy --to origin-mycluster new.txt; git annex drop new.txt; git annex lookupkey new.txt >../key",
    )
    assert web.cluster.holders((environment.directory / "key").read_text().strip()) == [True] * 3


def _guide() -> list[str]:
    """What the guide has one type or write into files, in order."""
    page = Path(__file__).parents[2] / "docs/how-to/public-dataset.md"
    return re.findall(r"^```\w*\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["ours", *only_in_all("p2phttp")])
def test_setup_finds_out_which_known_cluster_an_http_url_serves(cluster: Cluster, server: str) -> None:
    client = cluster.clone("client")
    if server == "ours":
        with web_of(cluster) as gateway:
            url = f"annex+http://127.0.0.1:{gateway.port}/data/git-annex/"
            _is_set_up(client, cluster, url, {"CLUSTER_REMOTE_TOKEN": gateway.tokens[Mode.READ_WRITE]})
    else:
        with serve_p2phttp(cluster.gateway) as port:
            # The end of the url may be left out.
            _is_set_up(client, cluster, f"annex+http://127.0.0.1:{port}", {})


def _is_set_up(client: Repository, cluster: Cluster, url: str, env: dict[str, str]) -> None:
    done = setup(client, "cloud", url, env=env)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    assert client.config("remote.cloud.annex-uuid") == cluster.uuid
    key = client.add("f", b"f")
    client.annex("copy", "--quiet", "--to", "cloud", "f")
    assert cluster.holders(key) == [True] * 3
    client.annex("drop", "--quiet", "f")
    client.annex("get", "--quiet", "--from", "cloud", "f")


@contextmanager
def other_server(status: int) -> Iterator[int]:
    """A web server that knows nothing of git-annex."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<h1>\x1b[31mHello</h1>")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def refused(clone: Repository, url: str, *arguments: str) -> str:
    """Return the one line in which setup refuses a url; no remote may be left."""
    done = setup(clone, "wrong", url, *arguments)
    assert done.returncode in (1, 2, 3), done.stdout.decode()
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("cluster-remote: ")
    assert line.isprintable()
    assert clone.config("remote.wrong.annex-uuid") is None
    return line


def test_a_url_of_another_server_is_refused_in_one_line(web: Web, clone: Repository) -> None:
    base = f"annex+http://127.0.0.1:{web.port}"
    assert "none of the" in refused(clone, f"{base}/git-annex/")
    assert "none of the" in refused(clone, f"{base}/data/elsewhere/git-annex/")
    stranger = "ac111111-1111-8111-8111-111111111111"
    assert stranger in refused(clone, f"{base}/data/git-annex/", "--cluster", stranger)
    assert "cannot connect" in refused(clone, f"annex+http://127.0.0.1:{free_port()}/git-annex/")
    for status, words in ((404, "none of the"), (200, "not JSON"), (500, "answered 500"), (403, "does not allow it")):
        with other_server(status) as port:
            assert words in refused(clone, f"annex+http://127.0.0.1:{port}/git-annex/")


def test_a_missing_login_is_reported_in_one_line(cluster: Cluster) -> None:
    with web_of(cluster) as gateway:
        client = cluster.clone("client")
        url = f"annex+http://127.0.0.1:{gateway.port}/data/git-annex/"
        assert "wants a login" in refused(client, url)


@pytest.mark.slow
def test_who_can_clone_a_private_dataset_needs_no_other_login(cluster: Cluster) -> None:
    environment = cluster.gateway.environment
    with web_of(cluster) as served:
        (environment.home / ".git-credentials").write_text(
            served.url.replace("http://", f"http://me:{served.tokens[Mode.READ_WRITE]}@") + "\n"
        )
        environment.run("git", "config", "--global", "credential.helper", "store")
        client = cloned(served, None, "client")
        done = setup(client)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        key = client.add("f", b"f")
        client.annex("copy", "--quiet", "--to", "mycluster", "f")
        assert cluster.holders(key) == [True] * 3


def test_an_untrusted_certificate_is_refused_in_one_line(cluster: Cluster) -> None:
    environment = cluster.gateway.environment
    certificate, key = make_certificate(environment)
    port = free_port()
    https = ("--listen", f"https://127.0.0.1:{port}/", "--certificate", str(certificate), "--key", str(key))
    with web_of(cluster, "--public-read", *https):
        client = cluster.clone("client")
        url = f"annex+https://127.0.0.1:{port}/git-annex/"
        assert "certificate" in refused(client, url)
        client.git("config", "http.sslCAInfo", str(certificate))
        done = setup(client, "cloud", url)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
