"""The protocol: values, messages, streams, client and server."""
