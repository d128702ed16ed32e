"""Serving a session to others: listeners, tokens, and the way to the gateway's own git repository."""
