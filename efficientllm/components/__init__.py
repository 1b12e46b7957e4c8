"""The interchangeable parts of the decoder, one file each: blocks, mixers, positions, feed-forward layers."""
