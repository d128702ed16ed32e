"""Resolve names and addresses to repositories, and open sessions with them."""
