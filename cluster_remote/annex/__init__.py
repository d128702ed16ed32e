"""Asking git-annex and git: configuration, location log, the logs of the git-annex branch, credentials."""

TOKEN_VARIABLE = "CLUSTER_REMOTE_TOKEN"
"""The environment variable that a token is taken from; none of the programs that are started from here gets it."""
