"""Many sessions as one: the cluster side of the protocol, in this process."""
