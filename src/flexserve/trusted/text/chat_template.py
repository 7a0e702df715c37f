"""A model's chat template: from a conversation to the text that the model was trained on."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import msgspec

from flexserve.errors import CallerError, StoredDataError
from flexserve.protocol.notation import HERMES, CallNotation, Notation, Style
from flexserve.protocol.prompts import ChatMessage, ChatPrompt
from flexserve.trusted.text import conversation
from flexserve.trusted.text.markers import Markers
from flexserve.trusted.text.rendering.jobs import Result
from flexserve.trusted.text.rendering.renderer import Renderer
from flexserve.trusted.text.tokenizer import Tokenizer

# For models without a template. `flexserve add`, `show` and `run` say that theirs is none of the model's.
_DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HARMONY_START, HARMONY_FINAL = "<|start|>assistant", "<|channel|>final<|message|>"
FUNCTIONARY = ">>>"  # everything that its models say has a recipient; "all" is the client


class ChatTemplate:
    """The model's own chat template: code of a stranger, run by the secure world's helper. Thread-safe."""

    def __init__(self, source: str | None, vocabulary: Tokenizer, renderer: Renderer) -> None:
        """`source`: what the model's file has; None or "": it brings none."""
        self._source = source or _DEFAULT_TEMPLATE
        self._vocabulary, self._renderer = vocabulary, renderer
        self.beginning = vocabulary.text_of("tokenizer.ggml.bos_token_id")
        self.end = vocabulary.text_of("tokenizer.ggml.eos_token_id")
        self._values: dict[str, Any] = {
            "bos_token": self.beginning,
            "eos_token": self.end,
        }

    @property
    def own(self) -> str:
        """The text of the model's own template; "" where it brings none."""
        return "" if self._source is _DEFAULT_TEMPLATE else self._source

    @functools.cached_property
    def structure(self) -> Markers:
        """The texts that stand for tokens by which it tells turns and their parts apart."""
        return self._vocabulary.structure(self._source)

    @functools.cached_property
    def _takes(self) -> Result:
        return self._renderer.look(self._source)

    @property
    def notation(self) -> Notation:
        """How its model writes thoughts and calls. Raises as `render`."""
        return self._takes.notation or Notation()

    @functools.cached_property
    def shown(self) -> dict[int, bytes]:
        """The control tokens of the notation, with their texts. Raises as `render`."""
        return self._vocabulary.shown(self.notation.marks)

    @property
    def endings(self) -> list[str]:
        """The texts of its notation's control tokens that end an answer. Raises as `render`."""
        return [text.decode() for token, text in self.shown.items() if self._vocabulary.ends(token)]

    @property
    def tools(self) -> str:
        """The style of calls as Abilities has it. Raises as `render`."""
        if not self._takes.takes_tools:
            return "none"
        if self.notation.harmony:
            return "harmony"
        calls: CallNotation | None = self.notation.calls
        if calls is None:
            return "other"
        return "bare" if calls.style is Style.JSON and calls.bare else calls.style.value

    def render(self, prompt: ChatPrompt, *, confined: bool = False) -> str:
        """Return the text of a conversation, up to where the model goes on.

        `confined`: the answer itself follows, or a thought. Raises CallerError when the template refuses the
        conversation (a role out of order), or takes too much time or memory; StoredDataError when the
        template itself fails. None of them quotes the conversation.
        """
        *turns, last = prompt.messages
        goes_on = prompt.opens and last.role == "assistant" and not last.tool_calls and turns
        begun = last if goes_on else None
        prompt = self._adapted(msgspec.structs.replace(prompt, messages=turns) if begun else prompt)
        text = self._rendered(prompt, self._variables(prompt))
        if not prompt.opens:
            return text
        if prompt.thinking is False or prompt.thought_tokens == 0:
            text = self._without_thought(text, prompt)
        if begun is not None:
            return self._continued(text, begun)
        if confined and self.notation.harmony:
            return text + HARMONY_FINAL
        return text + "all\n" if confined and self.begun(text) == FUNCTIONARY else text

    def begun(self, text: str) -> str:
        """Return the mark of the answer that stands at the end of a rendered `text`, "" if none does."""
        notation = self.notation
        marks = [notation.thought_open, HARMONY_START if notation.harmony else ""]
        if notation.calls is not None and notation.calls.open == FUNCTIONARY:
            marks.append(FUNCTIONARY)
        end = text.rstrip()
        return next((mark for mark in marks if mark and end.endswith(mark.rstrip())), "")

    # ---- inside ------------------------------------------------------------------------------------

    def _adapted(self, prompt: ChatPrompt) -> ChatPrompt:
        """Return a conversation with what the template has no place for in the turns that it knows."""
        takes, calls = self._takes, self.notation.calls or HERMES
        if any(turn.tool_calls or turn.role == "tool" for turn in prompt.messages) and not takes.shows_calls:
            prompt = conversation.with_calls_told(prompt, calls, results=not takes.takes_calls)
        if prompt.tools is not None and not takes.takes_tools:
            prompt = conversation.with_tools_told(prompt, tools_of(prompt), calls)
        return prompt if takes.takes_system else conversation.without_system(prompt)

    def _variables(self, prompt: ChatPrompt) -> dict[str, Any]:
        """Return what the template gets beside the messages."""
        # The names that templates have for it. If nothing is said, the first is true, as with llama-server.
        thinking = {"enable_thinking": True}
        if prompt.thinking is not None:
            thinking = {"enable_thinking": prompt.thinking, "thinking": prompt.thinking}
        values = thinking | (json.loads(prompt.values) if prompt.values else {})
        values |= self._values | {"add_generation_prompt": prompt.opens}
        if prompt.tools is not None:
            values["tools"] = tools_of(prompt)
        return values

    def _rendered(self, prompt: ChatPrompt, values: dict[str, Any]) -> str:
        """Return the template's text; of what it may not take, it is given one thing after the other."""
        turns = prompt.messages
        harmony = self.notation.harmony
        try:
            return self._renderer.render(
                self._source, values | {"messages": _turns(turns, _arguments, harmony)}
            )
        except StoredDataError:
            if not any(turn.tool_calls for turn in turns):
                raise
            # Most templates write arguments as JSON of an object, some join their text to other text.
            values["messages"] = _turns(turns, str, harmony)
        except CallerError:
            if not any(call for turn in turns for call in turn.tool_calls):
                raise
            # Some take ids of nine letters only: those of other servers are replaced.
            values["messages"] = _turns(conversation.with_short_ids(prompt).messages, _arguments, harmony)
        return self._renderer.render(self._source, values)

    def _without_thought(self, text: str, prompt: ChatPrompt) -> str:
        """Return `text` such that the model does not think, where the template itself did not see to it."""
        notation = self.notation
        if notation.harmony:
            return text + HARMONY_FINAL
        if self.begun(text) == notation.thought_open:
            return f"{text.rstrip()}\n\n{notation.thought_close}\n\n"
        values = self._variables(msgspec.structs.replace(prompt, thinking=True))
        knows = notation.thought_open in self._source
        if (
            not knows
            or text.rstrip().endswith(notation.thought_close)
            or self._rendered(prompt, values) != text
        ):
            return text
        return f"{text}{notation.thought_open}\n\n{notation.thought_close}\n\n"

    def _continued(self, text: str, turn: ChatMessage) -> str:
        """Return `text` with what the assistant has said already behind it."""
        notation, begun = self.notation, self.begun(text)
        if notation.harmony:
            return text + ("" if text.endswith(HARMONY_FINAL) else HARMONY_FINAL) + turn.content
        if turn.thought:
            text += turn.thought if begun else f"{notation.thought_open}\n{turn.thought}"
            begun = notation.thought_open
        if not turn.content:
            return text
        if begun == FUNCTIONARY:
            text += "all\n"
        elif begun and not turn.content.lstrip().startswith(notation.thought_open):
            text = f"{text.rstrip()}\n{notation.thought_close}\n\n"
        return text + turn.content


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


def _turns(
    messages: list[ChatMessage], arguments: Callable[[str], Any], harmony: bool
) -> list[dict[str, Any]]:
    return [_turn(message, arguments, harmony) for message in messages]


def _turn(message: ChatMessage, arguments: Callable[[str], Any], harmony: bool) -> dict[str, Any]:
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
    if message.thought:
        # Harmony's has another name, and refuses it beside text and calls.
        turn["thinking" if harmony else "reasoning_content"] = message.thought
        if harmony and message.content and message.tool_calls:
            del turn["thinking"]
    return turn


def _arguments(text: str) -> Any:
    """Return a call's arguments as the object that templates write out; what is none stays text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
