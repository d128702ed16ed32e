"""The command line: one file a command, what is done apart from how it is shown."""
