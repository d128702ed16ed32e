"""Tests of the life of a cluster: set up, joined, changed, taken down."""
