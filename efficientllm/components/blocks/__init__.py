"""Residual blocks; each module exposes COMPONENT."""
