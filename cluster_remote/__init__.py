"""A git-annex cluster as one special remote, whatever way leads to it."""

__version__ = "0.1.0"
