"""Transports to a peer: addresses, processes, ssh and sockets."""
