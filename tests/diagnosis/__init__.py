"""Diagnosis of clusters, apart from the commands that show it."""
