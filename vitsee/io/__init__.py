"""Safe reading and atomic writing of files, downloads, and a check for a network connection."""
