"""The external special remote, which git-annex starts."""
