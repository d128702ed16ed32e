"""Compare this program's speed with git-annex's own on one machine, for `cluster-remote bench`."""
