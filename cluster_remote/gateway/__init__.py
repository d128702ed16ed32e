"""Serving a session to others: listeners, tokens, and access to the gateway's own git repository."""
