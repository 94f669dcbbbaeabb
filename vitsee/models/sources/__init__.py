"""Where models come from, one file each: a source loads a network and its preprocessing."""
