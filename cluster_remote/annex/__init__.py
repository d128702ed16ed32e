"""Query git-annex and git: configuration, location log, the logs of the git-annex branch, credentials."""

TOKEN_VARIABLE = "CLUSTER_REMOTE_TOKEN"
"""The environment variable with the token. Never passed on to child processes."""
