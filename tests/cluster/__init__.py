"""The cluster: fan-out, routing, membership, and sessions with real nodes."""
