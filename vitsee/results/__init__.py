"""Result folders: sums so far, tables, provenance, figures."""
