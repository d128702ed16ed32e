"""Fixtures for attacks: the same sites as for the special remote."""

from __future__ import annotations

from tests.remote.conftest import own_site, shared_site, site

__all__ = ["own_site", "shared_site", "site"]
