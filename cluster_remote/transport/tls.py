"""Configure TLS: a client's trust and certificate, from git's https settings, and a server's certificate."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster_remote.p2p.errors import Unreachable

if TYPE_CHECKING:
    from cluster_remote.annex.gitconfig import GitConfig

__all__ = ["ServerCertificate", "TlsSettings"]


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
    def of(cls, config: GitConfig) -> TlsSettings:
        """Read git's http.sslCAInfo, http.sslCert, http.sslKey, http.sslVerify and the variables that override them."""
        return cls(
            os.environ.get("GIT_SSL_CAINFO") or _path(config.get("http.sslCAInfo")),
            os.environ.get("GIT_SSL_CERT") or _path(config.get("http.sslCert")),
            os.environ.get("GIT_SSL_KEY") or _path(config.get("http.sslKey")),
            "GIT_SSL_NO_VERIFY" not in os.environ and config.boolean("http.sslVerify", True),
        )

    def context(self) -> ssl.SSLContext:
        """Return the SSL context for a connection. Raises Unreachable if a file cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.authorities)
        except (OSError, ssl.SSLError) as error:
            raise Unreachable(f"{self.authorities} cannot be used as http.sslCAInfo: {_reason(error)}") from None
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key)
            except (OSError, ssl.SSLError) as error:
                raise Unreachable(f"{self.certificate} cannot be used as http.sslCert: {_reason(error)}") from None
        return context


def _path(value: str | None) -> str | None:
    return None if not value else str(Path(value).expanduser())


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


class ServerCertificate:
    """A server's certificate chain and key, as PEM files that may be replaced while it runs."""

    def __init__(self, certificate: str, key: str) -> None:
        """Load the files. Raises ValueError if they cannot be used."""
        self.certificate = certificate
        self.key = key
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # Only this version of HTTP is served. Clients of tls:// do not negotiate a protocol.
        self.context.set_alpn_protocols(["http/1.1"])
        self.reload()

    def reload(self) -> None:
        """Reload the files for new connections. Raises ValueError and keeps the old ones if that fails."""
        try:
            self.context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            files = f"{self.certificate} and {self.key}"
            raise ValueError(f"{files} cannot be used as certificate and key: {_reason(error)}") from None
