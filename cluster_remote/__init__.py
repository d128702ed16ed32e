"""A git-annex special remote for a cluster of repositories, with or without a server."""

__version__ = "0.1.0"
