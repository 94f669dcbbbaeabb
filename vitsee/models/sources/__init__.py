"""The sources of models, one file each: a source loads a network and its preprocessing."""
