"""Tests of the documentation: what a page shows is run as printed."""
