"""Finding out the state of a cluster: the work behind the diagnostic commands, without showing it."""
