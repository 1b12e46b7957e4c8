"""The decoder family: one residual decoder whose block, mixer, position and feed-forward layer are chosen by name."""
