"""What a compromised normal world would try against a secure world, tried: `flexserve attack`."""
