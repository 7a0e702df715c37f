"""The tokenizer of FlexServe Tiny: byte-level BPE learned from the corpus, with ChatML's turn marks.

Text is split before merging exactly as llama.cpp's "gpt-2" pre-tokenizer splits it.
"""

from __future__ import annotations

import json
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END, TURN_START, TURN_END = range(3)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Vocabulary:
    """Tokens, merges, and the token form of a chat."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self._size = size
        self.encode = lru_cache(maxsize=1 << 16)(self._encode)

    @classmethod
    def learn(cls, texts: list[str], size: int) -> Vocabulary:
        """Return a vocabulary of at most `size` tokens learned from `texts`."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        roles = ["system", "user", "assistant"] * 1000  # frequent, so that each role is one token
        tokenizer.train_from_iterator([*roles, *texts], trainer)
        return cls(tokenizer, size)

    def tokens(self) -> list[str | None]:
        """Every token in llama.cpp's spelling, by id; None where the corpus was too small to fill the id."""
        by_id = {index: token for token, index in self._tokenizer.get_vocab().items()}
        return [by_id.get(index) for index in range(self._size)]

    def merges(self) -> list[str]:
        """The merges in order, each as "left right"."""
        learned = json.loads(self._tokenizer.to_str())["model"]["merges"]
        return [" ".join(pair) for pair in learned]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def message(self, role: str, content: str) -> list[int]:
        """One finished message, as the chat template writes it."""
        return [TURN_START, *self.encode(f"{role}\n{content}"), TURN_END, *self.encode("\n")]

    def system(self, content: str) -> list[int]:
        """The system message."""
        return self.message("system", content)

    def turn(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Return (prompt, reply): the reply ends with the mark that stops generation.

        In a longer conversation a line break follows, as after every message.
        """
        prompt = [*self.message("user", question), TURN_START, *self.encode("assistant\n")]
        return prompt, [*self.encode(answer), TURN_END]
