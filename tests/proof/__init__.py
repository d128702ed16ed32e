"""The proof of what docs/reliability.md promises: a state machine, a table of faults, and fuzz."""
