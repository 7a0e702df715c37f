"""A machine model: no real isolation, no real memory pressure; for tests and studies."""
