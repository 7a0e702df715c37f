"""Text to tokens and back: the vocabulary of a model that llama.cpp has open here."""

from __future__ import annotations

import ctypes
import functools
import hashlib

from flexserve.trusted.engine.library import lib
from flexserve.trusted.engine.model import Model
from flexserve.trusted.text.tokenizer import Gap, Marks, Tokenizer


class Vocabulary(Tokenizer):
    """The tokens of a model, as llama.cpp has them: they do not change."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.address = model.vocabulary  # of llama.cpp's own
        self._metadata = model.header.metadata

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of all tokens: vocabularies of which it is the same are the same."""
        digest = hashlib.sha256()
        for token in range(lib.llama_vocab_n_tokens(self.address)):
            text = lib.llama_vocab_get_text(self.address, token) or b""
            digest.update(len(text).to_bytes(4, "little") + text)
        return digest.hexdigest()

    def encode(self, text: str, *, special: bool, start: bool = True) -> list[int]:
        data = text.encode()
        room = len(data) + 16
        while True:
            array = (lib.llama_token * room)()
            count = lib.llama_tokenize(self.address, data, len(data), array, room, start, special)
            if count >= 0:
                return list(array[:count])
            room = -count

    @functools.cached_property
    def marks(self) -> Marks:
        begin, end, between = (
            int(token(self.address)) if adds(self.address) else -1
            for token, adds in (
                (lib.llama_vocab_bos, lib.llama_vocab_get_add_bos),
                (self._text_end, lib.llama_vocab_get_add_eos),
                (lib.llama_vocab_sep, lib.llama_vocab_get_add_sep),
            )
        )
        return Marks(_there(begin), _there(end), _there(between))

    @staticmethod
    def _text_end(address: int) -> int:
        """Return the token behind a text: that which ends one, or else that which parts two."""
        end = int(lib.llama_vocab_eos(address))
        return end if end >= 0 else int(lib.llama_vocab_sep(address))

    @functools.cached_property
    def size(self) -> int:
        return int(lib.llama_vocab_n_tokens(self.address))

    @functools.cached_property
    def gap(self) -> Gap | None:
        prefix, suffix, middle, file = (
            int(find(self.address))
            for find in (
                lib.llama_vocab_fim_pre,
                lib.llama_vocab_fim_suf,
                lib.llama_vocab_fim_mid,
                lib.llama_vocab_fim_sep,
            )
        )
        if min(prefix, suffix, middle) < 0:
            return None
        return Gap(prefix, suffix, middle, _there(file))

    def piece(self, token: int, *, special: bool = False) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = lib.llama_token_to_piece(self.address, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def ends(self, token: int) -> bool:
        return bool(lib.llama_vocab_is_eog(self.address, token))

    def attributes(self, token: int) -> int:
        return int(lib.llama_vocab_get_attr(self.address, token))

    def name(self, token: int) -> str:
        return bytes(lib.llama_vocab_get_text(self.address, token)).decode(errors="replace")

    def metadata(self, key: str) -> object:
        return self._metadata.get(key)


def _there(token: int) -> int | None:
    return token if token >= 0 else None
