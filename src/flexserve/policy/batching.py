"""Whose tokens go into the next graph of a model, and how many of each. Pure.

A decode reads every weight once, however many sequences it is for, so those that wait for their next
token are computed together. A prompt is many tokens of one sequence and has graphs of its own. While
prompts and others wait, a budget of prompt tokens is computed between two decodes. It grows with the
number of prompts beside that of the others: each of those that wait counts alike, whatever it waits for.
So when many ask at once, few decodes are computed for few sequences, and a prompt that comes alone holds
up many others only in small pieces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_PIECE = 64  # tokens of prompts between two decodes, for each prompt beside one of the others


class Batching:
    """Takes turns between prompts and decodes of one model. `batch`: tokens that a graph takes in."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._since_decode = 0  # tokens of prompts while others waited for their next token

    def next(self, pending: Mapping[int, int]) -> tuple[Sequence[int], int]:
        """Return the requests of the next graph, and how many tokens of each at most.

        `pending`: the tokens that each running request has to compute before its next one, in the order
        in which they began. None of them is 0.
        """
        prompts = [request for request, tokens in pending.items() if tokens > 1]
        ready = [request for request, tokens in pending.items() if tokens == 1]
        if not ready:
            return prompts[:1], self._batch
        if prompts:
            budget = min(_PIECE * math.ceil(len(prompts) / len(ready)), self._batch)
            piece = min(pending[prompts[0]], budget)
            if self._since_decode + piece <= budget:
                self._since_decode += piece
                return prompts[:1], piece
        self._since_decode = 0
        return ready, self._batch
