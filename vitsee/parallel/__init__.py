"""Cooperation between processes: leases, teams and signals."""
