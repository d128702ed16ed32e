"""A certificate for servers of tests."""

from __future__ import annotations

from pathlib import Path

from .environment import Environment

__all__ = ["make_certificate"]


def make_certificate(environment: Environment) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    certificate, key = environment.directory / "cert.pem", environment.directory / "key.pem"
    environment.run(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate,
    )  # fmt: skip
    return certificate, key
