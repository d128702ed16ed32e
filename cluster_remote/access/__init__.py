"""From what a person or a remote names to who that is, and to sessions with it."""
