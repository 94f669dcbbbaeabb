"""Files as they are read and written, whole and checked."""
