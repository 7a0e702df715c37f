"""Driven worlds and synthetic models, for benchmarks, attacks and tests."""
