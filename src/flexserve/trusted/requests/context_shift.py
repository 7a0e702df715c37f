"""A context that is full, and a model that is set to go on without the older part of what it holds.

What goes is as in llama-server: of the tokens behind those that are kept, the first half. There, llama.cpp
turns the keys of the rest to their new places. Here the rest is computed anew: its KV is then exactly that of
its tokens, so it may be sealed and used again. And llama.cpp's way passes over the keys of all sequences,
also of those that have no memory at the time (docs/decisions/0027).
"""

from __future__ import annotations

import dataclasses

_LEAST = 4  # tokens of a context that are not kept
_MOST_CONTEXTS = 10  # that an answer may be long for which no limit is given, as in ollama


@dataclasses.dataclass(frozen=True, slots=True)
class ContextShift:
    """What is given up of a context of `size` tokens, when it is full.

    `keep`: tokens at the start that stay. `discard`: tokens behind them that go; 0: half of all these.
    """

    size: int
    keep: int
    discard: int

    @property
    def longest_answer(self) -> int:
        """Tokens after which an answer ends for which no limit is given."""
        return _MOST_CONTEXTS * self.size

    def shift(self, tokens: list[int]) -> tuple[list[int], int]:
        """Return what stays of `tokens`, and how many of its first ones are where they were.

        The last of them was chosen just now and is not in the KV cache.
        """
        kept = max(0, min(self.keep, self.size - _LEAST))
        others = len(tokens) - 1 - kept
        gone = min(self.discard or others // 2, others - 1)
        return tokens[:kept] + tokens[kept + gone :], kept


def shift_of(size: int, *, prompt: int, begun: bool, keep: int, discard: int) -> ContextShift | None:
    """Return how a full context is shifted, as `n_keep` and `n_discard` ask for; None: it is too small.

    `prompt`: tokens of the prompt, all of which are kept with a negative `keep`. `begun`: the tokenizer put
    one before the text, which is kept beside `keep`.
    """
    if size <= _LEAST:
        return None
    return ContextShift(size, prompt if keep < 0 else keep + begun, discard)
