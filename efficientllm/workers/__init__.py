"""The pipeline by several workers of one machine, each on a GPU of its own."""
