"""The command line: one file per command; rendering is separate."""
