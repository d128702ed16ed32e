"""What can be found out about a cluster: the work behind the diagnostic commands, apart from showing it."""
