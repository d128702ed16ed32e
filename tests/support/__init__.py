"""What the tests stand on: isolated environments, real repositories and clusters, servers, and scripted peers."""
