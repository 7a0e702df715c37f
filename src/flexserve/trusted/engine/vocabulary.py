"""Text to tokens and back: the model's vocabulary."""

from __future__ import annotations

import codecs
import ctypes
import dataclasses
import functools
import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from flexserve.trusted.engine.library import lib
from flexserve.trusted.engine.model import Model
from flexserve.trusted.text.grammar import TokenTree
from flexserve.trusted.text.markers import Markers

_CONTROLS = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
_MARKER = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)  # of tokens that files do not always declare as controls
_RANK_TEMPLATE = "tokenizer.chat_template.rerank"  # in the metadata of models that rank in words of their own
_PLACE = re.compile(r"\{(query|document)\}")
_TAG = re.compile(r"[<\[{(]\S+[>\]})]")  # of tokens that may be structure: where a template writes them


@dataclasses.dataclass(frozen=True, slots=True)
class Gap:
    """The tokens around a gap that a model fills; `file` comes before each other text of its project."""

    prefix: int
    suffix: int
    middle: int
    file: int | None


class Vocabulary:
    """The tokens of a model. Thread-safe: llama.cpp's vocabulary does not change."""

    def __init__(self, model: Model) -> None:
        self.address = model.vocabulary  # of llama.cpp's own
        self._metadata = model.header.metadata
        self._trees: dict[frozenset[int], TokenTree] = {}
        self._making = threading.Lock()

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of all tokens: vocabularies of which it is the same are the same."""
        digest = hashlib.sha256()
        for token in range(lib.llama_vocab_n_tokens(self.address)):
            text = lib.llama_vocab_get_text(self.address, token) or b""
            digest.update(len(text).to_bytes(4, "little") + text)
        return digest.hexdigest()

    def encode(self, text: str, *, special: bool, start: bool = True) -> list[int]:
        """Return the tokens of `text`.

        `special`: text like "<|im_end|>" means the control token, as chat templates need it.
        `start`: add the token that begins a sequence, where the model has one.
        """
        data = text.encode()
        room = len(data) + 16
        while True:
            array = (lib.llama_token * room)()
            count = lib.llama_tokenize(self.address, data, len(data), array, room, start, special)
            if count >= 0:
                return list(array[:count])
            room = -count

    @property
    def begins(self) -> bool:
        """Whether a token of its own begins a text."""
        return bool(lib.llama_vocab_get_add_bos(self.address))

    def encode_parts(self, parts: Sequence[tuple[str, bool]], *, start: bool) -> list[int]:
        """Return the tokens of a text in parts, each with whether control tokens in it are meant.

        Of one part they are those of `encode`. `start`: as there.
        """
        if len(parts) == 1:
            (text, special), *_ = parts
            return self.encode(text, special=special, start=start)
        tokens: list[int] = []
        if start and self.begins:
            tokens.append(int(lib.llama_vocab_bos(self.address)))
        for number, (text, special) in enumerate(parts):
            # A marker that is no control token to llama.cpp is one to it also where none is meant.
            pieces = [text] if special or len(text) < 2 else [text[0], text[1:]]
            for place, piece in enumerate(pieces):
                follows = number + place > 0
                encode = self._continuation if follows else functools.partial(self.encode, start=False)
                tokens += encode(piece, special=special)
        return tokens

    def encode_pair(self, query: str, text: str) -> list[int]:
        """Return the tokens by which a model that ranks is asked how well `text` answers `query`."""
        template = self._metadata.get(_RANK_TEMPLATE)
        if isinstance(template, str):
            pieces = {"query": query, "document": text}
            asked = _PLACE.sub(lambda place: pieces[place[1]], template)
            return self.encode(asked, special=True, start=False)
        begins, ends, parts = (
            [int(token(self.address))] if adds(self.address) else []
            for token, adds in (
                (lib.llama_vocab_bos, lib.llama_vocab_get_add_bos),
                (self._text_end, lib.llama_vocab_get_add_eos),
                (lib.llama_vocab_sep, lib.llama_vocab_get_add_sep),
            )
        )
        asked_tokens = self._plain(query)
        return [*begins, *asked_tokens, *ends, *parts, *self._plain(text), *ends]

    @staticmethod
    def _text_end(address: int) -> int:
        """Return the token behind a text: that which ends one, or else that which parts two."""
        end = int(lib.llama_vocab_eos(address))
        return end if end >= 0 else int(lib.llama_vocab_sep(address))

    def _plain(self, text: str) -> list[int]:
        return self.encode(text, special=False, start=False)

    def _continuation(self, text: str, *, special: bool) -> list[int]:
        """Return the tokens of `text` where it goes on: some tokenizers put a space before what begins."""
        lead = self.encode("\n", special=False, start=False)
        tokens = self.encode("\n" + text, special=special, start=False)
        if lead and tokens[: len(lead)] == lead:
            return tokens[len(lead) :]
        return self.encode(text, special=special, start=False)

    @functools.cached_property
    def markers(self) -> Markers:
        """The texts that stand for control tokens, and for others that are written like them."""
        return Markers(self._added[0])

    def structure(self, template: str) -> Markers:
        """Return `markers` and the tags, like "<think>", that their file calls words of users but `template`
        writes: by them the template means the token, and so does llama.cpp wherever they stand.
        """
        controls, tags = self._added
        return Markers([*controls, *(tag for tag in tags if tag in template)])

    @functools.cached_property
    def _added(self) -> tuple[list[str], list[str]]:
        """The texts of control tokens and what is written like them; the other tags."""
        controls, tags = [], []
        for token in range(self.size):
            attributes = lib.llama_vocab_get_attr(self.address, token)
            if attributes & (_CONTROLS | lib.LLAMA_TOKEN_ATTR_USER_DEFINED):
                text = bytes(lib.llama_vocab_get_text(self.address, token)).decode(errors="replace")
                if attributes & _CONTROLS or _MARKER.fullmatch(text):
                    controls.append(text)
                elif _TAG.fullmatch(text):
                    tags.append(text)
        return controls, tags

    @functools.cached_property
    def size(self) -> int:
        """How many tokens there are."""
        return int(lib.llama_vocab_n_tokens(self.address))

    @functools.cached_property
    def gap(self) -> Gap | None:
        """The tokens around a gap to fill; None for a model that was not trained to."""
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
        return Gap(prefix, suffix, middle, file if file >= 0 else None)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes that `token` stands for (control tokens: none, or with `special` their names)."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = lib.llama_token_to_piece(self.address, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def ends(self, token: int) -> bool:
        """Return whether `token` ends a generation."""
        return bool(lib.llama_vocab_is_eog(self.address, token))

    @functools.cached_property
    def endings(self) -> list[int]:
        """The tokens that end a generation."""
        return [token for token in range(self.size) if self.ends(token)]

    def shown(self, marks: Sequence[str]) -> dict[int, bytes]:
        """Return, of the control tokens that stand in `marks`, the texts."""
        controls = self._controls
        found = {
            text
            for mark in marks
            for start, end in self.markers.occurrences(mark)
            if (text := mark[start:end])
        }
        return {controls[text]: text.encode() for text in found if text in controls}

    @functools.cached_property
    def _controls(self) -> dict[str, int]:
        """The control tokens, by text."""
        found = {}
        for token in range(self.size):
            if lib.llama_vocab_get_attr(self.address, token) & _CONTROLS:
                found[bytes(lib.llama_vocab_get_text(self.address, token)).decode(errors="replace")] = token
        return found

    def tree(self, shown: Mapping[int, bytes] = MappingProxyType({})) -> TokenTree:
        """Return the tokens as grammars see them, `shown` control tokens as their texts; made once."""
        key = frozenset(shown)
        with self._making:
            if key not in self._trees:
                self._trees[key] = TokenTree(self, self.size, shown)
            return self._trees[key]

    def text_of(self, key: str) -> str:
        """Return the text of the special token whose number is at metadata key `key` ("" if none)."""
        number = self._metadata.get(key)
        if isinstance(number, int) and 0 <= number < self.size:
            return bytes(lib.llama_vocab_get_text(self.address, number)).decode(errors="replace")
        return ""


class TextStream:
    """Turns tokens into text; a character split over tokens comes out whole."""

    def __init__(self, vocabulary: Vocabulary, shown: Mapping[int, bytes] = MappingProxyType({})) -> None:
        """`shown`: the texts of control tokens that are text here."""
        self._vocabulary, self._shown = vocabulary, shown
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Return the text that `token` completes."""
        return self._decoder.decode(self._shown.get(token) or self._vocabulary.piece(token))

    def finish(self) -> str:
        """Return what is left of a character that was never completed."""
        return self._decoder.decode(b"", final=True)
