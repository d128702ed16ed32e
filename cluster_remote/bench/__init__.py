"""How fast this is, beside git-annex itself on the same machine: what `cluster-remote bench` does."""
