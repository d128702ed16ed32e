"""Asking git-annex and git: configuration, location log, the logs of the git-annex branch, credentials."""
