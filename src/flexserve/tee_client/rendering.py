"""Prompts as the trusted application takes them sealed, rendered where they were asked: at the client's.

What a template says is public, and comes from the server. Its digest goes with each prompt, so the
application refuses one that was rendered by another template than its model's.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from flexserve.errors import PeerError
from flexserve.protocol.answers import Converted, Delta, Finished, Started, Timings, Usage
from flexserve.protocol.notation import Mark, Notation
from flexserve.protocol.prompts import ChatPrompt, TextPrompt
from flexserve.protocol.rendered import MOST, Rendered, Told, cannot_seal, shape_of
from flexserve.protocol.requests import Generate
from flexserve.tee_client.sampling import settings
from flexserve.tee_client.vocabulary import Vocabulary
from flexserve.trusted.text.chat_template import ChatTemplate
from flexserve.trusted.text.contents import Parts, parts_of
from flexserve.trusted.text.rendering.renderer import Renderer
from flexserve.trusted.text.stops import StopScanner
from flexserve.trusted.text.tokenizer import ADDED, Gap, Marks, Tokenizer

_MOST_SHAPES = 16


class Prompt:
    """A rendered prompt, and what its answer is for who asked: turns, cut at the first of `stops`.

    `notation`: how the answer is written; `begun`: what of it the prompt has already.
    """

    def __init__(
        self, rendered: Rendered, stops: Sequence[str], notation: Notation | None, begun: Mark
    ) -> None:
        self.rendered = rendered
        self._notation, self._begun = notation, begun
        self._scanner = StopScanner(stops)
        self._usage = Usage(0, 0)
        self._began, self._first = time.monotonic(), 0.0
        self.ended = False  # by a stop string: whatever comes is of no interest any more

    def take(self, message: Any) -> list[Any]:
        """Return what a message of the answer is for who asked. A stop string makes its end."""
        match message:
            case Started():
                self._usage = Usage(message.prompt_tokens, 0, message.cached_tokens)
                return [msgspec.structs.replace(message, notation=self._notation, begun=self._begun)]
            case Delta():
                self._first = self._first or time.monotonic()
                said = self._usage.completion_tokens + message.tokens
                self._usage = msgspec.structs.replace(self._usage, completion_tokens=said)
                text = self._scanner.feed(message.text)
                self.ended = self._scanner.stopped
                shown = msgspec.structs.replace(message, text=text, stop=self._scanner.found)
                end = [self._timed(Finished(0, "stop", self._usage, Timings()))] if self.ended else []
                return [shown, *end]
            case Finished():
                rest = self._scanner.finish()
                return [*([Delta(0, rest, 0)] if rest else []), self._timed(message)]
        return [message]

    def _timed(self, message: Finished) -> Finished:
        """Return the end of the answer with times as they were here: the application tells none."""
        now = time.monotonic()
        first = self._first or now
        timings = Timings(ttft=1000 * (first - self._began), decode=1000 * (now - first))
        return msgspec.structs.replace(message, timings=timings)


def shown_shape(vocabulary: Vocabulary) -> Converted:
    """Return what prompts of a model are rendered by, for its clients: the answer to AskTemplate.

    The pieces are the names of the tokens that begin and end a text, then the texts of those tokens that are
    controls, unknown or declared; `tokens` has the attributes of these.
    """
    added = [token for token in range(vocabulary.size) if vocabulary.attributes(token) & ADDED]
    ends = [vocabulary.text_of(f"tokenizer.ggml.{name}_token_id").encode() for name in ("bos", "eos")]
    return Converted(
        0,
        vocabulary.described("tokenizer.chat_template"),
        [vocabulary.attributes(token) for token in added],
        [*ends, *(vocabulary.name(token).encode() for token in added)],
    )


class PromptRenderer:
    """Renders prompts by templates that `renderer` runs in its sandbox. Thread-safe."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._lock = threading.Lock()
        self._templates: dict[bytes, tuple[ChatTemplate, _Names]] = {}  # by shape

    def prompt(self, asked: Generate, shape: Converted) -> Prompt:
        """Return the prompt of `asked`, rendered by what the server says of its model.

        Raises CallerError for what the application cannot do, or the template refuses; PeerError for a shape
        that is none; StoredDataError for a template that is wrong.
        """
        _require(asked)
        texts = [piece.decode(errors="replace") for piece in shape.pieces]
        if len(texts) != len(shape.tokens) + 2:
            raise PeerError("The server does not say how prompts are rendered.", hint="Ask again.")
        digest = shape_of(shape.text, texts[2:])
        template, names = self._template(digest, shape, texts)
        notation: Notation | None = None
        begun: Mark = ""
        if isinstance(asked.prompt, ChatPrompt):
            text, parts = parts_of(asked.prompt, template, names)
            notation, begun = template.notation, template.begun(text)
            if template.shown:
                raise cannot_seal("answer by models that mark calls and thoughts by control tokens")
        elif isinstance(asked.prompt, TextPrompt):
            parts = Parts([(asked.prompt.text, True)], start=True)
        else:
            raise cannot_seal("take prompts of tokens, or fill gaps,")
        sampling = asked.sampling
        seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        rendered = Rendered(
            asked.model,
            _alternating(parts.texts),
            settings(msgspec.structs.replace(sampling, seed=seed), _no_texts),
            MOST if sampling.max_tokens is None else max(1, sampling.max_tokens),
            parts.start,
            digest,
            msgspec.msgpack.encode(Told(asked.priority, asked.next_model, asked.keep_alive)),
        )
        return Prompt(rendered, sampling.stop, notation, begun)

    def _template(self, digest: bytes, shape: Converted, texts: list[str]) -> tuple[ChatTemplate, _Names]:
        key = digest + hashlib.sha256(repr((texts[:2], shape.tokens)).encode()).digest()
        with self._lock:
            if key not in self._templates:
                if len(self._templates) >= _MOST_SHAPES:
                    del self._templates[next(iter(self._templates))]
                names = _Names(texts[:2], texts[2:], shape.tokens)
                self._templates[key] = ChatTemplate(shape.text, names, self._renderer), names
            return self._templates[key]


class _Names(Tokenizer):
    """Of a vocabulary, the tokens that templates mean by name. It cuts no texts."""

    size = 0
    marks = Marks()
    gap: Gap | None = None

    def __init__(self, ends: Sequence[str], texts: Sequence[str], attributes: Sequence[int]) -> None:
        super().__init__()
        self.size = len(texts)
        self._ends, self._texts, self._attributes = ends, texts, attributes

    def encode(self, text: str, *, special: bool, start: bool = True) -> list[int]:
        del text, special, start
        raise cannot_seal("cut a text into tokens")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        del special
        return self._texts[token].encode()

    def ends(self, token: int) -> bool:
        return self._texts[token] == self._ends[1]

    def attributes(self, token: int) -> int:
        return self._attributes[token]

    def name(self, token: int) -> str:
        return self._texts[token]

    def metadata(self, key: str) -> object:
        del key
        return None

    def text_of(self, key: str) -> str:
        return self._ends["eos" in key]


def _require(asked: Generate) -> None:
    """Raise CallerError for what a sealed request inside the machine cannot ask."""
    sampling, prompt = asked.sampling, asked.prompt
    if sampling.schema is not None or sampling.grammar is not None:
        raise cannot_seal("confine answers to a schema or a grammar")
    if sampling.logprobs is not None or sampling.echo:
        raise cannot_seal("tell probabilities, or a prompt before its answer,")
    if any(isinstance(one.token, str) for one in sampling.logit_bias):
        raise cannot_seal("change the scores of texts (of tokens, it can)")
    if asked.rounding != 1:
        raise cannot_seal("round the length of an answer")
    if isinstance(prompt, ChatPrompt) and (prompt.must_call or prompt.thought_tokens is not None):
        raise cannot_seal("have a tool called, or a thought ended,")


def _alternating(parts: Sequence[tuple[str, bool]]) -> tuple[str, ...]:
    """Return texts of which control tokens are meant in the first, the third, and so on."""
    texts: list[str] = []
    for text, special in parts:
        # A marker that is no control token to llama.cpp is one to it also where none is meant.
        pieces = [text] if special or len(text) < 2 else [text[0], text[1:]]
        for piece in pieces:
            if (len(texts) % 2 == 0) != special:
                texts.append("")
            texts.append(piece)
    return tuple(texts)


def _no_texts(text: str) -> Sequence[int]:
    del text
    raise cannot_seal("cut a text into tokens")
