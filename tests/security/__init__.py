"""Attacks: what others can write into the git-annex branch, say as a peer or do as a client, and what it gets them."""
