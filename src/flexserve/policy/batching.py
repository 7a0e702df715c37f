"""Whose tokens go into the next graph of a model, and how many of each. Pure.

A decode reads every weight once, however many sequences it is for, so those that wait for their next
token are computed together. A prompt is many tokens of one sequence: it goes in pieces while others wait
for their next token, and takes turns with them. Short prompts, as those of conversations that go on,
share a graph.
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
        if not self._prompts_turn:
            return ready, self._batch
        limit = _PIECE if ready else self._batch
        return _together({request: pending[request] for request in prompts}, limit), limit


def _together(prompts: Mapping[int, int], room: int) -> list[int]:
    """Return the first of `prompts` and what fits whole beside it into `room` tokens."""
    chosen: list[int] = []
    for request, tokens in prompts.items():
        if not chosen or tokens <= room:
            chosen.append(request)
            room -= tokens
    return chosen
