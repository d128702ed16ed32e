"""The special remote, as git-annex and its users meet it."""
