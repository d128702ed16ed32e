"""A certificate for servers of tests."""

from __future__ import annotations

from pathlib import Path

from .environment import Environment

__all__ = ["make_authority", "make_certificate", "make_client_certificate"]

# RSA keys take a second.
_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


def make_certificate(environment: Environment) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    certificate, key = environment.directory / "cert.pem", environment.directory / "key.pem"
    environment.run(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate,
    )  # fmt: skip
    return certificate, key


def make_authority(environment: Environment, name: str = "authority") -> tuple[Path, Path]:
    """A private certificate authority, and its key."""
    certificate, key = environment.directory / f"{name}.pem", environment.directory / f"{name}-key.pem"
    subject = ("-subj", f"/CN={name}", "-keyout", key, "-out", certificate)
    environment.run("openssl", "req", "-x509", *_EC, "-nodes", "-days", "2", *subject)
    return certificate, key


def make_client_certificate(
    environment: Environment, authority: tuple[Path, Path], name: str = "client"
) -> tuple[Path, Path]:
    """A client's certificate from an authority, and its key."""
    certificate, key = environment.directory / f"{name}.pem", environment.directory / f"{name}-key.pem"
    request = environment.directory / f"{name}.csr"
    environment.run("openssl", "req", "-new", *_EC, "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    environment.run(
        "openssl", "x509", "-req", "-in", request, "-CA", authority[0], "-CAkey", authority[1], "-days", "2",
        "-out", certificate,
    )  # fmt: skip
    return certificate, key
