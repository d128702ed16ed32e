"""The life of a cluster: set up, changed, renamed, taken down. Changes are planned first, and undone on failure."""
