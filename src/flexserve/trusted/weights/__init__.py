"""Weights in memory, and bringing them back in time."""
