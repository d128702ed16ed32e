"""A gateway, as git-annex's own client and ours see it."""
