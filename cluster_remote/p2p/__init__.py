"""git-annex's P2P protocol, without any dependency on git-annex or clusters."""

MAX_VERSION = 4
"""The newest version of the protocol that this program speaks."""
