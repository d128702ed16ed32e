"""Infrastructure of the tests: isolated environments, real repositories and clusters, servers, and scripted peers."""
