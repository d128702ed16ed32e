"""What is found out about clusters, apart from the commands that show it."""
