"""The OpenAI-compatible HTTP API: relays to the secure world, holds nothing."""
