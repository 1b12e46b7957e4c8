"""Normalization, ranks, ties and tiers, and the tables that carry them."""
