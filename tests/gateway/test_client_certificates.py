"""`cluster-remote serve --client-ca`: only clients with a certificate from that authority can connect."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster_remote.p2p.server import Mode
from tests.cli.command import cluster_remote
from tests.gateway.gateways import Gateway, gateway_of
from tests.remote.testbed import initremote
from tests.support.certificates import make_authority, make_certificate, make_client_certificate
from tests.support.environment import Environment
from tests.support.processes import wait_until
from tests.support.repositories import Cluster, Repository, make_cluster
from tests.support.sockets import free_port


@dataclass
class Guarded:
    """A gateway at tls:// and https:// that asks for a certificate of `member`, and who may have one."""

    gateway: Gateway
    tls: str
    https: str
    authority: Path
    certificates: dict[str, tuple[Path, Path]] = field(default_factory=dict)

    def clone(self, name: str, shown: str | None) -> Repository:
        """Return a clone that trusts the gateway, and shows one of the certificates."""
        client = self.gateway.cluster.clone(name)
        client.git("config", "http.sslCAInfo", self.gateway.cluster.gateway.environment.directory / "cert.pem")
        if shown is not None:
            for setting, file in zip(("sslCert", "sslKey"), self.certificates[shown], strict=True):
                client.git("config", f"http.{setting}", file)
        return client


@pytest.fixture(scope="module")
def guarded(make_environment: Callable[[], Environment]) -> Iterator[Guarded]:
    environment = make_environment()
    cluster = make_cluster(environment, environment.directory)
    certificate, key = make_certificate(environment)
    ours, other = make_authority(environment), make_authority(environment, "other")
    tls, https = free_port(), free_port()
    options = ("--listen", f"tls://127.0.0.1:{tls}", "--listen", f"https://127.0.0.1:{https}/data")
    files = ("--certificate", str(certificate), "--key", str(key), "--client-ca", str(ours[0]))
    with gateway_of(cluster, *options, *files) as gateway:
        made = Guarded(gateway, f"tls://localhost:{tls}", f"annex+https://localhost:{https}/data/git-annex/", ours[0])
        made.certificates["member"] = make_client_certificate(environment, ours, "member")
        made.certificates["stranger"] = make_client_certificate(environment, other, "stranger")
        yield made
        assert "internal error" not in gateway.log.read_text()


@pytest.fixture(params=["tls", "https"])
def way(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_a_client_needs_a_certificate_from_the_authority_and_a_token(guarded: Guarded, way: str) -> None:
    url, token = getattr(guarded, way), guarded.gateway.tokens[Mode.READ_WRITE]
    for shown, with_token, words in (
        ("member", token, None),
        ("member", "no token", "token" if way == "tls" else "login"),
        ("stranger", token, "http.sslCert"),
        (None, token, "http.sslCert"),
    ):
        client = guarded.clone(f"{shown} {with_token[:2]} {way}", shown)
        done = cluster_remote(client, "ping", url, env={"CLUSTER_REMOTE_TOKEN": with_token}, code=None)
        assert (done.code == 0) is (words is None), done
        if words is not None:
            assert words in done.out + done.err, done
            assert token not in done.out + done.err


def test_content_is_stored_and_fetched_by_a_member(guarded: Guarded, way: str) -> None:
    cluster, client = guarded.gateway.cluster, guarded.clone(f"member by {way}", "member")
    token = {"CLUSTER_REMOTE_TOKEN": guarded.gateway.tokens[Mode.READ_WRITE]}
    initremote(client, "mycl", f"url={getattr(guarded, way)}", sameas=cluster.uuid, env=token)
    key = client.add("photo", f"photo by {way}".encode())
    client.annex("copy", "--quiet", "--to", "mycl", "photo")
    assert cluster.holders(key) == [True] * 3
    client.annex("drop", "--quiet", "--force", "photo")
    client.annex("get", "--quiet", "--from", "mycl", "photo")
    assert client.object_bytes(key) == f"photo by {way}".encode()


def test_git_clones_with_the_certificate_in_its_configuration(guarded: Guarded) -> None:
    environment = guarded.gateway.cluster.gateway.environment
    token = guarded.gateway.tokens[Mode.READ_ONLY]
    url = guarded.https.removeprefix("annex+").removesuffix("/git-annex/")
    helper = f"!f() {{ test $1 = get && echo username=x && echo password={token}; }}; f"

    def cloned(shown: str) -> int:
        certificate, key = guarded.certificates[shown]
        settings = {
            "http.sslCAInfo": environment.directory / "cert.pem",
            "http.sslCert": certificate,
            "http.sslKey": key,
            "credential.helper": helper,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        clone = ("clone", "--quiet", url, environment.directory / f"cloned by a {shown}")
        return environment.run("git", *options, *clone, check=False).returncode

    assert cloned("member") == 0
    assert cloned("stranger") != 0


def test_nothing_is_answered_without_a_certificate(guarded: Guarded, way: str) -> None:
    certificate = guarded.gateway.cluster.gateway.environment.directory / "cert.pem"
    context = ssl.create_default_context(cafile=certificate)
    port = int(getattr(guarded, way).split(":")[2].partition("/")[0])
    answer = b""
    with socket.create_connection(("127.0.0.1", port), 10) as plain:
        client = f"127.0.0.1:{plain.getsockname()[1]})"
        # In TLS 1.3, the client believes that all is well until it reads.
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_hostname="localhost") as talking:
            talking.sendall(b"GET /data/config HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = talking.recv(100)
    assert answer == b""

    def is_rejected() -> bool:
        return any(client in line and "rejected" in line for line in guarded.gateway.log.read_text().splitlines())

    assert wait_until(is_rejected)


def test_a_hangup_replaces_the_authority_and_a_useless_file_changes_nothing(cluster: Cluster) -> None:
    environment, port = cluster.gateway.environment, free_port()
    certificate, key = make_certificate(environment)
    authority, later = make_authority(environment), make_authority(environment, "later")
    members = [make_client_certificate(environment, each, each[0].stem + " member") for each in (authority, later)]
    used = environment.directory / "clients.pem"
    used.write_bytes(authority[0].read_bytes())
    options = ("--listen", f"tls://127.0.0.1:{port}", "--certificate", str(certificate), "--key", str(key))
    with gateway_of(cluster, *options, "--client-ca", str(used)) as gateway:
        client = cluster.clone()
        client.git("config", "http.sslCAInfo", certificate)

        def codes() -> list[int]:
            found = []
            for shown in members:
                for setting, file in zip(("sslCert", "sslKey"), shown, strict=True):
                    client.git("config", f"http.{setting}", file)
                token = {"CLUSTER_REMOTE_TOKEN": gateway.tokens[Mode.READ_WRITE]}
                found.append(cluster_remote(client, "ping", f"tls://localhost:{port}", env=token, code=None).code)
            return found

        def reloaded(content: bytes, words: str) -> None:
            used.write_bytes(content)
            gateway.process.send_signal(signal.SIGHUP)
            assert wait_until(lambda: words in gateway.log.read_text())

        first, second = codes()
        assert first == 0 != second
        reloaded(b"no certificate", "keeping the old certificate")
        assert codes() == [first, second]
        reloaded(later[0].read_bytes(), "certificate reloaded")
        first, second = codes()
        assert second == 0 != first


def test_an_authority_that_would_have_no_effect_or_cannot_be_used_is_refused(cluster: Cluster) -> None:
    environment = cluster.gateway.environment
    certificate, key = make_certificate(environment)
    useless = environment.directory / "no.pem"
    useless.write_text("no certificate")
    files = ("--certificate", certificate, "--key", key)
    for options, words in (
        (("--listen", "tcp://127.0.0.1:1", *files, "--client-ca", certificate), "requires an address with TLS"),
        (("--listen", "tls://127.0.0.1:1", "--client-ca", certificate), "require --certificate and --key"),
        (("--listen", "tls://127.0.0.1:1", *files, "--client-ca", useless), "cannot be used as the clients'"),
        (("--listen", "https://127.0.0.1:1", *files, "--client-ca", useless.with_name("none")), "cannot be used as"),
    ):
        done = cluster_remote(cluster.gateway, "serve", *options, code=None)
        assert done.code != 0
        assert words in done.err
