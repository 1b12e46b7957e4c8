"""Positional encodings; each module exposes COMPONENT."""
