"""Result folders: state files, tables, provenance and figures."""
