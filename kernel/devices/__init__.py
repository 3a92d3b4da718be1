"""A driver's life and its work."""
