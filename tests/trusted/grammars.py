"""Grammars over the vocabulary of the tiny model, for tests: what they admit, and what they say at random."""

from __future__ import annotations

import functools
import json
import types
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
from llama_cpp import llama_cpp as lib

from flexserve.trusted.engine import runtime
from flexserve.trusted.engine.vocabulary import Vocabulary
from flexserve.trusted.text.constraint import OPTIONS, answer_rule
from flexserve.trusted.text.grammar import Confinement

TINY = Path(__file__).parents[2] / "models" / "tiny" / "flexserve-tiny.gguf"


class Reader:
    """Grammars over the vocabulary of the tiny model, whose single bytes are tokens, too."""

    def __init__(self) -> None:
        lib.llama_log_set(runtime._silent, None)
        parameters = lib.llama_model_default_params()
        parameters.vocab_only = True
        self._model = lib.llama_model_load_from_file(str(TINY).encode(), parameters)
        address = lib.llama_model_get_vocab(self._model)
        model: Any = types.SimpleNamespace(vocabulary=address, header=types.SimpleNamespace(metadata={}))
        self.vocabulary = Vocabulary(model)
        self.tree = self.vocabulary.tree()
        self.eos = lib.llama_vocab_eos(address)

    def admits(self, grammar: str, text: str) -> bool:
        """Return whether `text`, and then the end, is what the grammar allows, cut into tokens or bytes."""
        answers = {
            self._admits(grammar, tokens)
            for tokens in (self.vocabulary.encode(text, special=False, start=False), self._bytes(text))
        }
        (answer,) = answers
        return answer

    def _admits(self, grammar: str, tokens: list[int]) -> bool:
        rules = Confinement(self.tree, grammar)
        if tokens and self.vocabulary.piece(tokens[0]) == b" ":  # this family's encoder begins with one
            tokens = tokens[1:]
        for token in tokens:
            if not rules.admits(token):
                return False
            rules.accept(token)
        return rules.admits(self.eos)

    def _bytes(self, text: str) -> list[int]:
        return [self._byte_tokens()[byte] for byte in text.encode()]

    @functools.cache  # noqa: B019 (there is one reader)
    def _byte_tokens(self) -> dict[int, int]:
        pieces = [self.vocabulary.piece(token) for token in range(self.tree.size)]
        return {piece[0]: token for token, piece in enumerate(pieces) if len(piece) == 1}

    def walk(self, grammar: str, seed: int, limit: int = 300) -> str | None:
        """Return some text that the grammar allows, at random; None when that comes to no end."""
        rng = np.random.default_rng(seed)
        rules = Confinement(self.tree, grammar)
        text = b""
        for _ in range(limit):
            token = self._chosen(rules, rng)
            if self.vocabulary.ends(token):
                return text.decode()  # and never a part of a character
            rules.accept(token)
            text += self.vocabulary.piece(token)
        return None

    def _chosen(self, rules: Confinement, rng: np.random.Generator) -> int:
        admitted = rules.admitted()
        ends = [int(token) for token in admitted if self.vocabulary.ends(int(token))]
        if ends and rng.random() < 0.3:
            return ends[0]
        closing = [int(t) for t in admitted if self.vocabulary.piece(int(t)) in (b'"', b"}", b"]", b",")]
        return int(rng.choice(closing if closing and rng.random() < 0.3 else admitted))


@functools.cache
def shared_reader() -> Reader:
    return Reader()


def grammar(schema: Any) -> str:
    return grammar_of(answer_rule(json.dumps(schema)), "answer")


def grammar_of(rules: str, start: str) -> str:
    return f"{OPTIONS}\nstart: {start}\n{rules}\n"


def valid(schema: Any, text: str) -> bool:
    """Return whether an answer is text, JSON, and valid by `schema`."""
    text.encode()
    return jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(
        json.loads(text, parse_float=_finite)
    )


def _finite(number: str) -> float:
    """JSON has larger numbers than Python, which makes them infinite."""
    return max(-1e308, min(1e308, float(number)))
