"""The ways to a peer: addresses, processes, ssh and sockets."""
