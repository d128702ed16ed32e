"""Configure TLS: a client's trust and certificate, from git's https settings, and a server's certificate."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster_remote.annex.gitconfig import is_true
from cluster_remote.p2p.errors import Unreachable

if TYPE_CHECKING:
    from cluster_remote.annex.gitconfig import GitConfig

__all__ = ["ServerCertificate", "TlsSettings", "http_setting", "origin_of", "tls_reason"]

_PORTS = {"http": 80, "https": 443}
# What a server may say that wants a certificate from its client, or another one.
_ABOUT_CERTIFICATES = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE")


@dataclass(frozen=True)
class TlsSettings:
    """A client's PEM files: `authorities` replace the system's, `certificate` and `key` are presented on request.

    `verify` is False only if git's http.sslVerify is.
    """

    authorities: str | None = None
    certificate: str | None = None
    key: str | None = None
    verify: bool = True

    @classmethod
    def of(cls, config: GitConfig, url: str) -> TlsSettings:
        """Read git's sslCAInfo, sslCert, sslKey and sslVerify for a url, and the variables that override them."""
        return cls(
            os.environ.get("GIT_SSL_CAINFO") or _path(http_setting(config, "sslCAInfo", url)),
            os.environ.get("GIT_SSL_CERT") or _path(http_setting(config, "sslCert", url)),
            os.environ.get("GIT_SSL_KEY") or _path(http_setting(config, "sslKey", url)),
            "GIT_SSL_NO_VERIFY" not in os.environ and is_true(http_setting(config, "sslVerify", url) or "true"),
        )

    def context(self) -> ssl.SSLContext:
        """Return the SSL context for a connection. Raises Unreachable if a file cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.authorities)
        except (OSError, ssl.SSLError) as error:
            raise Unreachable(f"{self.authorities} cannot be used as http.sslCAInfo: {_reason(error)}") from None
        _trust_as_git_does(context)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key)
            except (OSError, ssl.SSLError) as error:
                raise Unreachable(f"{self.certificate} cannot be used as http.sslCert: {_reason(error)}") from None
        return context


def _trust_as_git_does(context: ssl.SSLContext) -> None:
    """Accept a private authority without a key usage, which Python refuses from 3.13 on, and a trusted certificate."""
    context.verify_flags = context.verify_flags & ~ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN


def http_setting(config: GitConfig, name: str, url: str) -> str | None:
    """Return git's setting for a url: that of the `[http "URL"]` that fits it best, or else of `[http]`.

    The rules are those of git-config(1), http.<url>.*.
    """
    best, value = (0, 0), config.get(f"http.{name}")
    for pattern in config.subsections("http"):
        found, fit = config.get(f"http.{pattern}.{name}"), _fit(pattern, url)
        if found is not None and fit is not None and fit >= best:
            best, value = fit, found
    return value


def origin_of(url: str) -> tuple[str, str, int | None]:
    """Return a url's scheme, host and port. Raises ValueError."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)


def _fit(pattern: str, url: str) -> tuple[int, int] | None:
    """Return how much of a url's host and of its path a pattern names; None if it does not fit."""
    try:
        wanted, given = urlsplit(pattern), urlsplit(url)
        origins = origin_of(pattern), origin_of(url)
    except ValueError:
        return None
    hosts = [origin[1].split(".") for origin in origins]
    paths = [each.path.rstrip("/") + "/" for each in (wanted, given)]
    fits = (
        origins[0][::2] == origins[1][::2]
        and wanted.username is None
        and len(hosts[0]) == len(hosts[1])
        and all(part in ("*", other) for part, other in zip(*hosts, strict=True))
        and paths[1].startswith(paths[0])
    )
    return (sum(part != "*" for part in hosts[0]), len(paths[0])) if fits else None


def _path(value: str | None) -> str | None:
    return None if not value else str(Path(value).expanduser())


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def tls_reason(error: BaseException) -> str | None:
    """Return why TLS failed, and which of git's settings is about it; None if it was not TLS that failed."""
    cause = error.__cause__ or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message}); see http.sslCAInfo in git's configuration"
    if not isinstance(cause, ssl.SSLError):
        return None
    reason = cause.reason or str(cause)
    if "ALERT" in reason and any(word in reason for word in _ABOUT_CERTIFICATES):
        return (
            f"it wants a certificate from its clients, or a different one ({reason}); see http.sslCert and "
            "http.sslKey in git's configuration"
        )
    return reason


class ServerCertificate:
    """A server's certificate chain and key, as PEM files that may be replaced while it runs.

    With `client_authorities`, another PEM file, only clients with a certificate from one of these authorities can
    connect. `context` is for the next connection.
    """

    def __init__(self, certificate: str, key: str, client_authorities: str | None = None) -> None:
        """Load the files. Raises ValueError if they cannot be used."""
        self.certificate = certificate
        self.key = key
        self.client_authorities = client_authorities
        self.context = self._loaded()

    def reload(self) -> None:
        """Reload the files for new connections. Raises ValueError and keeps the old ones if that fails."""
        # An authority cannot be taken out of a context, so this is a new one.
        self.context = self._loaded()

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # Only this version of HTTP is served. Clients of tls:// do not negotiate a protocol.
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            files = f"{self.certificate} and {self.key}"
            raise ValueError(f"{files} cannot be used as certificate and key: {_reason(error)}") from None
        if self.client_authorities is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.sslobject_class = _Explaining
            _trust_as_git_does(context)
            try:
                context.load_verify_locations(self.client_authorities)
            except (OSError, ssl.SSLError) as error:
                raise ValueError(
                    f"{self.client_authorities} cannot be used as the clients' certificate authority: {_reason(error)}"
                ) from None
        return context


class _Explaining(ssl.SSLObject):
    """A server's side of TLS that tells the client why it is refused.

    asyncio and anyio hang up as soon as a handshake has failed, before they have sent what TLS says about that. So this
    asks for more first: they send it, and then get the failure, when the client has hung up or said anything else.
    """

    _failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as failure:
            self._failure = failure
            raise ssl.SSLWantReadError from failure
