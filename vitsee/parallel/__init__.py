"""Several processes at work: leases, teams, signals."""
