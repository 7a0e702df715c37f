"""Adapters behind two small ports: where secure memory comes from, and who may recall it."""
