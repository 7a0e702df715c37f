"""The boundary between the worlds: what may be said, and how it is framed."""
