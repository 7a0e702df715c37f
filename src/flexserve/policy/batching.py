"""Whose tokens go into the next graph of a model, and how many of each. Pure.

A decode reads every weight once, however many sequences it is for, so those that wait for their next
token are computed together. Prompts have graphs of their own, in which short ones share a graph. While
prompts and others wait, a budget of prompt tokens is computed between two decodes. It grows with the
square of the number of prompts, beside that of the others: were it in proportion to the prompts, as many
decodes would come between few as between many. So when many ask at once, few decodes are computed for few
sequences, and a prompt that comes alone holds up others only in small pieces.

llama.cpp computes sequences in one go only where they are neighbours: a decode for sequences 0, 1, 5 and 6
is two graphs. So prompts have their turns as an elevator has its floors, by their sequences, upwards and
then from the lowest one again. Those that began together then run, and end, as neighbours, and none waits
longer than for one prompt of each other sequence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

_PIECE = 64  # tokens of a prompt between two decodes, when it is the only one


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """What a running request has to have computed before its next token, and in which sequence."""

    pending: int  # tokens, at least 1
    sequence: int
    apart: bool = False  # its prompt has graphs of its own


class Batching:
    """Takes turns between prompts and decodes of one model. `batch`: tokens that a graph takes in."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._since_decode = 0  # tokens of prompts while others waited for their next token
        self._floor = 0  # the sequence from which on a prompt is looked for

    def next(self, parts: Mapping[int, Part]) -> tuple[Sequence[int], int]:
        """Return the requests of the next graph, by number, and how many tokens of each at most."""
        prompts = [request for request, part in parts.items() if part.pending > 1]
        ready = [request for request, part in parts.items() if part.pending == 1]
        if not (prompts and ready):
            self._since_decode = 0
        if not prompts:
            return ready, self._batch
        first = min(prompts, key=lambda request: self._floors_up_to(parts[request].sequence))
        share = math.ceil(len(prompts) ** 2 / len(ready)) * _PIECE if ready else self._batch
        budget = min(share, self._batch)
        piece = min(parts[first].pending, budget)
        most = (budget - self._since_decode) // piece
        if most < 1:
            self._since_decode = 0
            return ready, self._batch
        chosen = _neighbours(parts, first, piece)[:most]
        self._since_decode += piece * len(chosen)
        self._floor = parts[first].sequence + (parts[first].pending == piece)
        return chosen, piece

    def _floors_up_to(self, sequence: int) -> tuple[bool, int]:
        """Return how far a sequence is, as what can be compared: those below come after those above."""
        return sequence < self._floor, sequence


def _neighbours(parts: Mapping[int, Part], first: int, tokens: int) -> list[int]:
    """Return `first` and the requests in the sequences next above it that have so many tokens pending."""
    found, at = [first], parts[first].sequence
    able = {
        part.sequence: request
        for request, part in parts.items()
        if part.pending >= tokens and not (part.apart or parts[first].apart)
    }
    while (request := able.get(at := at + 1)) is not None:
        found.append(request)
    return found
