"""FlexServe: secure LLM inference in memory that the OS can recall but not read."""

__version__ = "0.1.0"
