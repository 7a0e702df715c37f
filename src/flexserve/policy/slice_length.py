"""How many nodes of a compute graph make a slice. Pure: times are passed in.

A recall waits at most for the slice under way, so a slice has to be short; but each one costs the threads
of compute a meeting. How long nodes take depends on how many tokens go through the graph, and is measured.
"""

from __future__ import annotations

_SECONDS = 0.05  # of a slice at most; shorter ones cost over a percent of speed
_LEAST = 16  # nodes


class SliceLength:
    """Measures and decides for the graphs of one context."""

    def __init__(self) -> None:
        self._pace: dict[int, float] = {}  # seconds per node, by size class of the tokens

    def nodes(self, tokens: int, graph: int) -> int:
        """Return how many nodes make a slice of a graph of `graph` nodes for `tokens` tokens, at the most."""
        pace = self._pace.get(tokens.bit_length())
        if pace is None:
            return _LEAST if tokens > 1 else graph
        return max(_LEAST, int(_SECONDS / pace) if pace > 0 else graph)  # 0: too fast for the clock

    def took(self, tokens: int, nodes: int, seconds: float) -> None:
        """Record that `nodes` nodes (at least one) of a graph for `tokens` tokens took so long."""
        pace, size = seconds / nodes, tokens.bit_length()
        self._pace[size] = (self._pace.get(size, pace) + pace) / 2
