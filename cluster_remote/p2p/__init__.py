"""The P2P protocol of git-annex and nothing else: no git-annex, no clusters."""
