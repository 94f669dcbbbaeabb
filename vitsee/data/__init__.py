"""Data sets, and the minibatches that are read from them."""
