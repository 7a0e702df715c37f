"""Whose tokens go into the next graph of a model, and how many of each. Pure.

A decode reads every weight once, however many sequences it is for, so those that wait for their next
token are computed together. A prompt is many tokens of one sequence: it has graphs of its own, in pieces
while others wait for their next token, and takes turns with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_PIECE = 64  # tokens of a prompt between two tokens of the others


class Batching:
    """Takes turns between prompts and decodes of one model. `batch`: tokens that a graph takes in."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._prompts_turn = False

    def next(self, pending: Mapping[int, int]) -> tuple[Sequence[int], int]:
        """Return the requests of the next graph, and how many tokens of each at most.

        `pending`: the tokens that each running request has to compute before its next one, in the order
        in which they began. None of them is 0.
        """
        prompts = [request for request, tokens in pending.items() if tokens > 1]
        ready = [request for request, tokens in pending.items() if tokens == 1]
        self._prompts_turn = bool(prompts) and not (ready and self._prompts_turn)
        chosen = prompts[:1] if self._prompts_turn else ready
        others_wait = any(request not in chosen for request in ready)
        return chosen, _PIECE if others_wait else self._batch
