"""Precisions: each module exposes `PRECISION`, an instance of `Precision`; its file name is the precision's key."""
