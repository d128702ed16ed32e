"""Setting up, changing, renaming and taking down clusters. Changes are planned first, and undone on failure."""
