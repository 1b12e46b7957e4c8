"""Sequence mixers; each module exposes COMPONENT."""
