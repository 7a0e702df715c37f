"""Text to tokens and back: what is above a model's vocabulary, whoever has that.

Control tokens are told from text that looks like them. Characters that are split over tokens are put
together.
"""

from __future__ import annotations

import abc
import codecs
import dataclasses
import functools
import re
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from flexserve.trusted.text.grammar import TokenTree
from flexserve.trusted.text.markers import Markers

# llama.cpp's attributes of tokens.
_UNKNOWN, _CONTROL, _USER_DEFINED = 1, 8, 16
CONTROLS = _CONTROL | _UNKNOWN
ADDED = CONTROLS | _USER_DEFINED  # beside the words of its text

_MARKER = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)  # of tokens that files do not always declare as controls
_TAG = re.compile(r"[<\[{(]\S+[>\]})]")  # of tokens that may be structure: where a template writes them


_RANK_TEMPLATE = "tokenizer.chat_template.rerank"  # in the metadata of models that rank in words of their own
_PLACE = re.compile(r"\{(query|document)\}")


@dataclasses.dataclass(frozen=True, slots=True)
class Marks:
    """The tokens that come before a text, behind it, and between two; None: none does."""

    begin: int | None = None
    end: int | None = None
    between: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Gap:
    """The tokens around a gap that a model fills; `file` comes before each other text of its project."""

    prefix: int
    suffix: int
    middle: int
    file: int | None


class Tokenizer(abc.ABC):
    """The tokens of a model, from 0 to before `size`. Thread-safe."""

    def __init__(self) -> None:
        self._trees: dict[frozenset[int], TokenTree] = {}
        self._making = threading.Lock()

    # ---- what its vocabulary says -----------------------------------------------------------------

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many tokens there are."""

    @property
    @abc.abstractmethod
    def marks(self) -> Marks:
        """The tokens that mark where texts begin and end."""

    @property
    @abc.abstractmethod
    def gap(self) -> Gap | None:
        """The tokens around a gap to fill; None for a model that was not trained to."""

    @abc.abstractmethod
    def encode(self, text: str, *, special: bool, start: bool = True) -> list[int]:
        """Return the tokens of `text`.

        `special`: text like "<|im_end|>" means the control token, as chat templates need it.
        `start`: add the token that begins a sequence, where the model has one.
        """

    @abc.abstractmethod
    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes that `token` stands for (control tokens: none, or with `special` their names)."""

    @abc.abstractmethod
    def ends(self, token: int) -> bool:
        """Return whether `token` ends a generation."""

    @abc.abstractmethod
    def attributes(self, token: int) -> int:
        """Return llama.cpp's attributes of `token`."""

    @abc.abstractmethod
    def name(self, token: int) -> str:
        """Return the text by which the vocabulary has a control token, or one that its file declared."""

    @abc.abstractmethod
    def metadata(self, key: str) -> object:
        """Return what the model's metadata have at `key`; None: nothing."""

    # ---- what follows -----------------------------------------------------------------------------

    @property
    def begins(self) -> bool:
        """Whether a token of its own begins a text."""
        return self.marks.begin is not None

    def encode_pair(self, query: str, text: str) -> list[int]:
        """Return the tokens by which a model that ranks is asked how well `text` answers `query`."""
        template = self.metadata(_RANK_TEMPLATE)
        if isinstance(template, str):
            pieces = {"query": query, "document": text}
            asked = _PLACE.sub(lambda place: pieces[place[1]], template)
            return self.encode(asked, special=True, start=False)
        begins, ends, parts = (
            [] if mark is None else [mark] for mark in (self.marks.begin, self.marks.end, self.marks.between)
        )
        query_tokens, tokens = (self.encode(each, special=False, start=False) for each in (query, text))
        return [*begins, *query_tokens, *ends, *parts, *tokens, *ends]

    def encode_parts(self, parts: Sequence[tuple[str, bool]], *, start: bool) -> list[int]:
        """Return the tokens of a text in parts, each with whether control tokens in it are meant.

        Of one part they are those of `encode`. `start`: as there.
        """
        if len(parts) == 1:
            (text, special), *_ = parts
            return self.encode(text, special=special, start=start)
        tokens: list[int] = []
        if start and self.marks.begin is not None:
            tokens.append(self.marks.begin)
        for number, (text, special) in enumerate(parts):
            # A marker that is no control token to llama.cpp is one to it also where none is meant.
            pieces = [text] if special or len(text) < 2 else [text[0], text[1:]]
            for place, piece in enumerate(pieces):
                follows = number + place > 0
                encode = self._continuation if follows else functools.partial(self.encode, start=False)
                tokens += encode(piece, special=special)
        return tokens

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
            attributes = self.attributes(token)
            if attributes & ADDED:
                text = self.name(token)
                if attributes & CONTROLS or _MARKER.fullmatch(text):
                    controls.append(text)
                elif _TAG.fullmatch(text):
                    tags.append(text)
        return controls, tags

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
            if self.attributes(token) & CONTROLS:
                found[self.name(token)] = token
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
        number = self.metadata(key)
        return self.name(number) if isinstance(number, int) and 0 <= number < self.size else ""


class TextStream:
    """Turns tokens into text; a character split over tokens comes out whole."""

    def __init__(self, vocabulary: Tokenizer, shown: Mapping[int, bytes] = MappingProxyType({})) -> None:
        """`shown`: the texts of control tokens that are text here."""
        self._vocabulary, self._shown = vocabulary, shown
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Return the text that `token` completes."""
        return self._decoder.decode(self._shown.get(token) or self._vocabulary.piece(token))

    def finish(self) -> str:
        """Return what is left of a character that was never completed."""
        return self._decoder.decode(b"", final=True)
