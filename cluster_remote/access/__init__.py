"""Resolve the names that people and remotes use to repositories, and open sessions with them."""
