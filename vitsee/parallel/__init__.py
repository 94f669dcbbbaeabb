"""Processes and threads that work together: leases, teams, signals and background work."""
