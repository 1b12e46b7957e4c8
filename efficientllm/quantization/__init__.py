"""Number types of stored and computed weights; one file per precision in `precisions/`."""
