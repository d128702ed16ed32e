"""The P2P protocol of git-annex and nothing else: no git-annex, no clusters."""

MAX_VERSION = 4
"""The newest version of the protocol that this program speaks."""
