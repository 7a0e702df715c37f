"""The vocabulary of a model that the trusted application has open."""

from __future__ import annotations

from flexserve.tee_client.application import Application
from flexserve.tee_client.messages import Ask, Word, broken, unpacked, words
from flexserve.trusted.text.tokenizer import CONTROLS, Gap, Marks, Tokenizer

_MOST_TOKENS = 1 << 22
_MARKS = 7  # around texts, and around gaps
_NUMBERS = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")  # of metadata


class Vocabulary(Tokenizer):
    """The tokens of a model, with their texts; they are asked for once. Texts are cut by the application."""

    size = 0
    marks = Marks()
    gap: Gap | None = None

    def __init__(self, app: Application, model: int) -> None:
        """`model`: the number of an open one. Raises PeerError."""
        super().__init__()
        self._app, self._model = app, model
        self._words: list[Word] = []
        while not self._words or len(self._words) < self.size:
            reply = app.do(Ask.WORDS, model, len(self._words))
            self.size, *_ = reply.values
            more = words(reply.payload)
            if not more or self.size > _MOST_TOKENS or len(self._words) + len(more) > self.size:
                raise broken("its vocabulary is none")
            self._words += more
        marks = [token if token < self.size else None for token in unpacked(app.do(Ask.MARKS, model).payload)]
        if len(marks) != _MARKS:
            raise broken("its marks are none")
        self.marks = Marks(*marks[:3])
        prefix, suffix, middle, file = marks[3:]
        if prefix is not None and suffix is not None and middle is not None:
            self.gap = Gap(prefix, suffix, middle, file)

    def encode(self, text: str, *, special: bool, start: bool = True) -> list[int]:
        reply = self._app.do(Ask.TOKENISE, self._model, special, not start, payload=text.encode())
        tokens = unpacked(reply.payload)
        if any(token >= self.size for token in tokens):
            raise broken("a token is none")
        return tokens

    def piece(self, token: int, *, special: bool = False) -> bytes:
        word = self._words[token]
        return word.text if special or not word.attributes & CONTROLS else b""

    def ends(self, token: int) -> bool:
        return self._words[token].ends

    def attributes(self, token: int) -> int:
        return self._words[token].attributes

    def name(self, token: int) -> str:
        return self._words[token].text.decode(errors="replace")

    def metadata(self, key: str) -> object:
        text = self.described(key)
        return int(text) if key in _NUMBERS and text.isdecimal() else text or None

    def described(self, key: str) -> str:
        """Return what the model's metadata have at `key`, as text; "": nothing."""
        return self._app.do(Ask.DESCRIBE, self._model, payload=key.encode()).payload.decode(errors="replace")
