"""Open sessions from addresses."""
