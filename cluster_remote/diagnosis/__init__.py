"""Finding out the state of a cluster: what the diagnostic commands do, without their output."""
