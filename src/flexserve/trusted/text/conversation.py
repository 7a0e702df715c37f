"""Conversations changed for templates that have no place for some of it: tools, calls, a system's turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from flexserve.protocol.notation import ANY, HERMES, CallNotation, Style
from flexserve.protocol.prompts import ChatMessage, ChatPrompt

_TOLD = """You may call these functions. Each is described by a JSON object:
{tools}

To call one, write this, with its name and its arguments, and nothing behind it:
{example}

The result is then given to you."""


def with_tools_told(
    prompt: ChatPrompt, tools: Sequence[Mapping[str, Any]], notation: CallNotation
) -> ChatPrompt:
    """Return `prompt` with its tools described by the system, and how to call them in `notation`."""
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = _TOLD.format(tools=described, example=written("NAME", '{"KEY": "VALUE"}', notation))
    turns = prompt.messages
    if turns[0].role == "system":
        first = msgspec.structs.replace(turns[0], content=f"{turns[0].content}\n\n{text}")
        turns = [first, *turns[1:]]
    else:
        turns = [ChatMessage("system", text), *turns]
    return msgspec.structs.replace(prompt, messages=turns, tools=None)


def with_calls_told(prompt: ChatPrompt, notation: CallNotation, *, results: bool) -> ChatPrompt:
    """Return `prompt` with calls in what the assistant says; `results`: and theirs in what the user says."""
    told: list[ChatMessage] = []
    for turn in prompt.messages:
        calls = [written(call.name, call.arguments or "{}", notation) for call in turn.tool_calls]
        role, content = turn.role, "\n".join([*filter(None, [turn.content]), *calls])
        if results and role == "tool":
            role, content = "user", f"<tool_response>\n{turn.content}\n</tool_response>"
        if results and told and told[-1].role == role == "user":  # turns alternate
            told[-1] = msgspec.structs.replace(told[-1], content=f"{told[-1].content}\n{content}")
        else:
            told.append(msgspec.structs.replace(turn, role=role, content=content, tool_calls=[]))
    return msgspec.structs.replace(prompt, messages=told)


def written(name: str, arguments: str, notation: CallNotation) -> str:
    """Return a call in `notation`; `arguments` is JSON of an object. In HERMES where that cannot be."""
    match notation.style:
        case Style.JSON if notation.name_key:
            keys = json.dumps(notation.name_key), json.dumps(notation.arguments_key)
            body = f"{{{keys[0]}: {json.dumps(name, ensure_ascii=False)}, {keys[1]}: {arguments}}}"
            body = f"[{body}]" if notation.listed else body
        case Style.NAMED:
            body = f"{f'functions.{name}:0' if notation.numbered else name}{notation.middle}{arguments}"
        case Style.PYTHON if isinstance(values := _loaded(arguments), dict):
            body = f"[{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})]"
        case _:
            return written(name, arguments, HERMES)
    parts = (notation.begin, notation.open, body, notation.close, notation.end)
    return "".join(parts).replace(ANY, "call00000")


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def without_system(prompt: ChatPrompt) -> ChatPrompt:
    """Return `prompt` with what the system says in front of what the user says next."""
    turns: list[ChatMessage] = []
    said: list[str] = []
    for turn in prompt.messages:
        if turn.role == "system":
            said.append(turn.content)
        elif said and turn.role == "user":
            turns.append(msgspec.structs.replace(turn, content="\n\n".join([*said, turn.content])))
            said = []
        else:
            turns.append(turn)
    if said:
        turns.append(ChatMessage("user", "\n\n".join(said)))
    return msgspec.structs.replace(prompt, messages=turns)


def with_short_ids(prompt: ChatPrompt) -> ChatPrompt:
    """Return `prompt` with ids of calls that have nine letters and digits: some templates take no others."""
    ids: dict[str, str] = {}

    def short(given: str) -> str:
        return ids.setdefault(given, f"call{len(ids):05}") if given else given

    turns = [
        msgspec.structs.replace(
            turn,
            tool_calls=[msgspec.structs.replace(call, id=short(call.id)) for call in turn.tool_calls],
            tool_call_id=short(turn.tool_call_id),
        )
        for turn in prompt.messages
    ]
    return msgspec.structs.replace(prompt, messages=turns)
