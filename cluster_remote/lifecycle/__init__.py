"""The life of a cluster: set up, grown, renamed, taken down. Changes are planned first, and undone if they fail."""
