"""From an address to a session."""
