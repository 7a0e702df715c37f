"""Text to tokens and back: the model's vocabulary and its chat template."""

from __future__ import annotations

import codecs
import ctypes
import dataclasses
import functools
import json
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

from llama_cpp import llama_cpp as lib

from flexserve.errors import CallerError, StoredDataError
from flexserve.protocol.calls import CallForm, form_of
from flexserve.protocol.messages import ChatMessage, ChatPrompt
from flexserve.trusted.engine.model import Model
from flexserve.trusted.text.grammar import TokenTree
from flexserve.trusted.text.markers import Markers
from flexserve.trusted.text.rendering.jobs import Result
from flexserve.trusted.text.rendering.renderer import Renderer

_CONTROLS = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
_MARKER = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)  # of tokens that files do not always declare as controls
_TAG = re.compile(r"[<\[{(]\S+[>\]})]")  # of tokens that may be structure: where a template writes them
_DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "<|im_start|>assistant\n"
)


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
        self._tree: TokenTree | None = None
        self._making = threading.Lock()

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

    def encode_parts(self, parts: Sequence[tuple[str, bool]], *, start: bool) -> list[int]:
        """Return the tokens of a text in parts, each with whether control tokens in it are meant.

        Of one part they are those of `encode`. `start`: as there.
        """
        if len(parts) == 1:
            (text, special), *_ = parts
            return self.encode(text, special=special, start=start)
        tokens: list[int] = []
        if start and lib.llama_vocab_get_add_bos(self.address):
            tokens.append(int(lib.llama_vocab_bos(self.address)))
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

    def tree(self) -> TokenTree:
        """Return the tokens as grammars see them; made once."""
        with self._making:
            if self._tree is None:
                self._tree = TokenTree(self, self.size)
            return self._tree

    def text_of(self, key: str) -> str:
        """Return the text of the special token whose number is at metadata key `key` ("" if none)."""
        number = self._metadata.get(key)
        if isinstance(number, int) and 0 <= number < self.size:
            return bytes(lib.llama_vocab_get_text(self.address, number)).decode(errors="replace")
        return ""


class TextStream:
    """Turns tokens into text; a character split over tokens comes out whole."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Return the text that `token` completes."""
        return self._decoder.decode(self._vocabulary.piece(token))

    def finish(self) -> str:
        """Return what is left of a character that was never completed."""
        return self._decoder.decode(b"", final=True)


class ChatTemplate:
    """The model's own chat template: code of a stranger, run by the secure world's helper. Thread-safe."""

    def __init__(self, model: Model, vocabulary: Vocabulary, renderer: Renderer) -> None:
        self._source = model.header.chat_template or _DEFAULT_TEMPLATE
        self._vocabulary, self._renderer = vocabulary, renderer
        self.beginning = vocabulary.text_of("tokenizer.ggml.bos_token_id")
        self._values: dict[str, Any] = {
            "bos_token": self.beginning,
            "eos_token": vocabulary.text_of("tokenizer.ggml.eos_token_id"),
            "add_generation_prompt": True,
        }

    @functools.cached_property
    def structure(self) -> Markers:
        """The texts that stand for tokens by which it tells turns and their parts apart."""
        return self._vocabulary.structure(self._source)

    @functools.cached_property
    def _takes(self) -> Result:
        return self._renderer.look(self._source)

    @property
    def call_form(self) -> CallForm | None:
        """The form of calls that it teaches, None if it is unknown or there is none. Raises as `render`."""
        return form_of(self._source) if self._takes.takes_tools else None

    @property
    def tools(self) -> str:
        """The form of calls as Abilities has it. Raises as `render`."""
        if not self._takes.takes_tools:
            return "none"
        return self.call_form.value if self.call_form is not None else "other"

    def render(self, prompt: ChatPrompt) -> str:
        """Return the text of a conversation.

        Raises CallerError when the template refuses it (a role out of order), takes too much time or
        memory, or has no use for the tools or calls that there are; StoredDataError when the template
        itself fails. None of them quotes the conversation.
        """
        has_calls = any(turn.tool_calls or turn.role == "tool" for turn in prompt.messages)
        if (prompt.tools is not None and not self._takes.takes_tools) or (
            has_calls and not self._takes.takes_calls
        ):
            raise CallerError(
                "This model's chat template knows no tools.",
                hint="Leave tools out, or use a model that was trained to call them.",
                code="tools_unsupported",
            )
        values = dict(self._values)
        if prompt.tools is not None:
            values["tools"] = tools_of(prompt)
        values["messages"] = [_turn(message, _arguments) for message in prompt.messages]
        try:
            return self._renderer.render(self._source, values)
        except StoredDataError:
            if not has_calls:
                raise
            # Most templates write arguments as JSON of an object, some join their text to other text.
            values["messages"] = [_turn(message, str) for message in prompt.messages]
            return self._renderer.render(self._source, values)


def tools_of(prompt: ChatPrompt) -> list[dict[str, Any]]:
    """Return the tools of a conversation. Raises CallerError for what is no list of OpenAI's tool objects."""
    try:
        tools = json.loads(prompt.tools or "[]")
        if isinstance(tools, list) and all(isinstance(tool["function"]["name"], str) for tool in tools):
            return tools
    except (ValueError, RecursionError, LookupError, TypeError):
        pass
    raise CallerError(
        "The tools are not a list of functions with names.", hint="Send them as OpenAI's API has them."
    )


def _turn(message: ChatMessage, arguments: Callable[[str], Any]) -> dict[str, Any]:
    """Return a message as templates expect it; `arguments` makes of a call's text what they get of it."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": c.id,
                "type": "function",
                "function": {"name": c.name, "arguments": arguments(c.arguments)},
            }
            for c in message.tool_calls
        ]
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.name:
        turn["name"] = message.name
    return turn


def _arguments(text: str) -> Any:
    """Return a call's arguments as the object that templates write out; what is none stays text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
