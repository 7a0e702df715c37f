"""The TRUSTED side: everything that sees weights, keys, prompts or tokens in clear."""
