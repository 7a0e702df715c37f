"""Text to tokens and back: the model's vocabulary and its chat template."""

from __future__ import annotations

import codecs
import ctypes
import datetime
import json
import threading
from typing import Any, NoReturn

import jinja2
import jinja2.meta
import jinja2.sandbox
from llama_cpp import llama_cpp as lib

from flexserve.core.calls import form_of
from flexserve.errors import CallerError, StoredDataError
from flexserve.secure.engine.grammar import TokenTree
from flexserve.secure.engine.model import Model
from flexserve.world.messages import ChatMessage, ChatPrompt

_MAX_RENDERED = 4 << 20  # characters; a template that makes more of bounded messages is hostile
_MAX_INDENT = 16
_DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "<|im_start|>assistant\n"
)


class Vocabulary:
    """The tokens of a model. Thread-safe: llama.cpp's vocabulary does not change."""

    def __init__(self, model: Model) -> None:
        self._address = model.vocabulary
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
            count = lib.llama_tokenize(self._address, data, len(data), array, room, start, special)
            if count >= 0:
                return list(array[:count])
            room = -count

    def piece(self, token: int) -> bytes:
        """Return the bytes that `token` stands for (control tokens: none)."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = lib.llama_token_to_piece(self._address, token, buffer, room, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def ends(self, token: int) -> bool:
        """Return whether `token` ends a generation."""
        return bool(lib.llama_vocab_is_eog(self._address, token))

    def tree(self) -> TokenTree:
        """Return the tokens as grammars see them; made once."""
        with self._making:
            if self._tree is None:
                self._tree = TokenTree(self, int(lib.llama_vocab_n_tokens(self._address)))
            return self._tree

    def text_of(self, key: str) -> str:
        """Return the text of the special token whose number is at metadata key `key` ("" if none)."""
        number = self._metadata.get(key)
        if isinstance(number, int) and 0 <= number < lib.llama_vocab_n_tokens(self._address):
            return bytes(lib.llama_vocab_get_text(self._address, number)).decode(errors="replace")
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
    """The model's own chat template, rendered in jinja2's immutable sandbox.

    A template is code inside a model file. The sandbox denies it attributes of Python objects
    and mutation of its input; nothing but the values below is in its reach.
    """

    def __init__(self, model: Model, vocabulary: Vocabulary) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(str(form)[:64])
        source = model.header.chat_template or _DEFAULT_TEMPLATE
        try:
            self._template = environment.from_string(source)
            self._takes_tools = "tools" in jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise _bad_template(error) from None
        self.call_form = form_of(source) if self._takes_tools else None
        self.beginning = vocabulary.text_of("tokenizer.ggml.bos_token_id")
        self._values: dict[str, Any] = {
            "bos_token": self.beginning,
            "eos_token": vocabulary.text_of("tokenizer.ggml.eos_token_id"),
            "add_generation_prompt": True,
        }

    def render(self, prompt: ChatPrompt) -> str:
        """Return the text of a conversation.

        Raises CallerError when the template refuses it (a role out of order) or knows no tools and
        there are some, StoredDataError when the template itself fails. Neither quotes the conversation.
        """
        has_calls = any(turn.tool_calls or turn.role == "tool" for turn in prompt.messages)
        if (prompt.tools is not None or has_calls) and not self._takes_tools:
            raise CallerError(
                "This model's chat template knows no tools.",
                hint="Leave tools out, or use a model that was trained to call them.",
                code="tools_unsupported",
            )
        values = dict(self._values)
        if prompt.tools is not None:
            values["tools"] = tools_of(prompt)
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(messages=[_turn(m) for m in prompt.messages], **values):
                size += len(part)
                if size > _MAX_RENDERED:
                    raise _bad_template(OverflowError())
                parts.append(part)
        except _TemplateRefusal:
            raise CallerError(
                "The model's chat template refuses this conversation.",
                hint="Check the order of roles: most templates want user and assistant in turn.",
            ) from None
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            RecursionError,
        ) as error:
            raise _bad_template(error) from None
        return "".join(parts)


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


def _turn(message: ChatMessage) -> dict[str, Any]:
    """Return a message as templates expect it."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": c.id,
                "type": "function",
                "function": {"name": c.name, "arguments": _arguments(c.arguments)},
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


def _to_json(
    value: object, *, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False
) -> str:
    """Write JSON as models were trained on it; jinja2's own filter escapes it for HTML."""
    indent = None if indent is None else max(0, min(int(indent), _MAX_INDENT))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


class _TemplateRefusal(Exception):  # noqa: N818
    """Raised by a template through raise_exception()."""


def _refuse(_message: object = "") -> NoReturn:
    raise _TemplateRefusal


def _bad_template(error: Exception) -> StoredDataError:
    return StoredDataError(
        f"The model's chat template does not work ({type(error).__name__}).",
        hint="Use /v1/completions, or a model file with a sound template.",
        code="chat_template_bad",
    )
