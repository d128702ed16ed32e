"""Compare our speed with git-annex's own on the same machine, for `cluster-remote bench`."""
