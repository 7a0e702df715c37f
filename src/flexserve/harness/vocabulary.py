"""A made-up vocabulary of any size: bytes, printable characters, and words of one to four syllables.

It is a SentencePiece-style vocabulary as llama.cpp reads it. Every word is the join of two shorter
pieces that are in it as well, so the greedy merging of that tokenizer finds all of them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from gguf import TokenType

SPACE = "▁"  # what SentencePiece writes for a space
# llama.cpp looks <|endoftext|> up in every model that has "phi3" in its name.
_CONTROLS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>")
_SYLLABLES = [consonant + vowel for vowel in "aeiou" for consonant in "bdfghjklmnprstvwyzc"]

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens in the order of their ids."""

    tokens: list[str]
    scores: list[float]  # the higher, the earlier two pieces merge into this one
    types: list[TokenType]
    bos: int
    eos: int
    end_of_turn: int
    unspoken: int  # ids below this (controls and raw bytes) are never generated


def make_vocabulary(size: int) -> Vocabulary:
    """Return a vocabulary of `size` tokens. Raises ValueError below 512: bytes alone take 256."""
    if size < 512:
        raise ValueError("a vocabulary needs at least 512 tokens")
    tokens = ["<unk>", "<s>", "</s>", *_CONTROLS]
    types = [TokenType.UNKNOWN] + [TokenType.CONTROL] * (len(tokens) - 1)
    tokens += [f"<0x{value:02X}>" for value in range(256)]
    types += [TokenType.BYTE] * 256
    unspoken = len(tokens)
    tokens += itertools.islice(_words(), size - unspoken)
    types += [TokenType.NORMAL] * (size - unspoken)
    scores = [0.0] * unspoken + [-float(rank) for rank in range(size - unspoken)]
    return Vocabulary(
        tokens=tokens,
        scores=scores,
        types=types,
        bos=tokens.index("<s>"),
        eos=tokens.index("</s>"),
        end_of_turn=tokens.index("<|end|>"),
        unspoken=unspoken,
    )


def _words() -> Iterator[str]:
    yield SPACE
    yield from (chr(code) for code in range(0x21, 0x7F))
    for syllables in itertools.count(1):
        for parts in itertools.product(_SYLLABLES, repeat=syllables):
            word = "".join(parts)
            yield SPACE + word
            yield word
