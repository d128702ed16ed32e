"""Fixtures for the tests of the commands: the same testbeds as for the special remote."""

from __future__ import annotations

from tests.remote.conftest import own_testbed, shared_testbed, testbed

__all__ = ["own_testbed", "shared_testbed", "testbed"]
