"""Tests of git-annex-remote-cluster, against the real git-annex."""
