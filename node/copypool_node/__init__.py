"""The storage node: volumes of extents, and the process that serves them."""
