"""Fixtures for the tests of the commands: the special remote's testbeds."""

from __future__ import annotations

from tests.remote.conftest import own_testbed, shared_testbed, testbed

__all__ = ["own_testbed", "shared_testbed", "testbed"]
