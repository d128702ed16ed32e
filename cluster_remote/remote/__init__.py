"""The external special remote: what git-annex starts."""
