"""The protocol: values, messages, streams and the client's side of it."""
