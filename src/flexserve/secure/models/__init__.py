"""Sealed models: the .flex container, derived images, the local store, device keys."""
