"""Feed-forward layers; each module exposes COMPONENT."""
