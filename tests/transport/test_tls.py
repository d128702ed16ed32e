"""Git's settings for https, as git reads them."""

from __future__ import annotations

import ssl

import pytest

from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.transport.tls import TlsSettings, http_setting
from tests.support.certificates import make_authority, make_client_certificate
from tests.support.environment import Environment

SETTINGS = {
    "http.proxy": "everywhere",
    "http.https://host.example/.proxy": "host",
    "http.https://host.example:443/data.proxy": "data",
    "http.https://host.example/data/more/.proxy": "more",
    "http.https://*.example/data/more/and/more.proxy": "any host",
    "http.https://host.example:9417/.proxy": "port",
    "http.http://host.example.proxy": "http",
    "http.https://me@host.example/data/more/still.proxy": "user",
    "http.https://other.example/.sslcert": "only a certificate",
    "http.nonsense.proxy": "nonsense",
    "http.https://[bad.proxy": "malformed",
    "http.https://host.example:port.proxy": "malformed",
}
URLS = [
    "https://host.example/",
    "https://host.example:443/data",
    "https://host.example/data/",
    "https://host.example/database",
    "https://host.example/data/more",
    "https://host.example/data/more/still",
    "https://host.example:9417/x",
    "http://host.example/x",
    "https://one.example/data/more/and/more/",
    "https://a.b.example/data/more/and/more",
    "https://other.example/",
    "https://unknown.example/",
]


@pytest.mark.parametrize("url", URLS)
def test_a_setting_for_a_url_is_the_one_that_git_takes(environment: Environment, url: str) -> None:
    options = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
    git = environment.run("git", *options, "config", "--get-urlmatch", "http.proxy", url).stdout.decode().strip()
    config = GitConfig.parse("".join(f"{name}\n{value}\0" for name, value in SETTINGS.items()).encode())
    assert http_setting(config, "proxy", url) == git


def test_a_private_authority_may_be_for_one_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_SSL_CAINFO", "GIT_SSL_CERT", "GIT_SSL_KEY", "GIT_SSL_NO_VERIFY"):
        monkeypatch.delenv(name, raising=False)
    config = GitConfig.parse(b"http.https://nas.example/.sslCAInfo\n/ca.pem\0http.sslVerify\nfalse\0")
    assert TlsSettings.of(config, "https://nas.example:443/git-annex/") == TlsSettings("/ca.pem", verify=False)
    assert TlsSettings.of(config, "https://other.example/") == TlsSettings(verify=False)
    monkeypatch.setenv("GIT_SSL_CAINFO", "/other.pem")
    assert TlsSettings.of(config, "https://nas.example/").authorities == "/other.pem"


def test_what_git_trusts_is_trusted(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """An authority without a key usage, which Python refuses from 3.13 on, and a server's own certificate."""
    default = ssl.create_default_context

    def strict(*arguments: object, **options: object) -> ssl.SSLContext:
        context = default(*arguments, **options)  # type: ignore[arg-type]
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    authority = make_authority(environment)
    certificate, key = make_client_certificate(environment, authority, "localhost")
    server = default(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    for trusted in (authority[0], certificate):
        context = TlsSettings(str(trusted)).context()
        # The name is not the subject here.
        context.check_hostname = False
        handshake(context, server)


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """Let both sides of a TLS connection agree. Raises SSLError."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there, server_hostname="localhost"), server.wrap_bio(there, back, server_side=True)]
    for _round in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
