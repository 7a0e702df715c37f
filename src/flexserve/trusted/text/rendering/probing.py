"""Finds out how a model writes thoughts and calls, by having its template write some.

The template renders a conversation in which a tool with a peculiar name was called. What stands around the
name, the arguments and their values is the notation; two calls and two arguments tell which of it comes
once and which with each. The code of a stranger says what it wants: so all this is text, and bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from flexserve.protocol.notation import ANY, BARE, HERMES, CallNotation, Notation, Style

Values = dict[str, Any]
Render = Callable[[Values], str | None]

_NAMES = ("zqname", "zqnamb")
_KEYS = ("zqkey", "zqkez")  # in their order by letters, too
_TEXTS = (("zqvalue", "zqvaluc"), ("zqvalub", "zqvalud"))  # by call
_SAID = "zqsaid"
_IDS = (("zqid00001", "zqid00002"), ("functions.zqname:0", "functions.zqnamb:1"))
_MOST_MARK = 256
_TYPE = re.compile(r'(?<=string=")true(?=")|(?<=type=")string(?=")')  # of a value, beside its name
# What begins and ends a mark in the texts of templates; all else is a character by itself.
_SEGMENT = re.compile(r"</?[^<>\s]{1,60}>|\[/?[A-Z_]{2,30}\]|.", re.DOTALL)
_THOUGHT = re.compile(r"<((?:\w{1,16}:)?think(?:ing)?(?::\w{1,16})?)>")
_THOUGHTS = (  # those that are not like <think>
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)
# Marks around what is said.
_DROPPED = (
    *("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    *("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"),
    *("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
)
# Notations that a template's calls do not show, by marks in its source.
_OWN = (
    (
        ("<|channel|>", "<|message|>"),  # OpenAI's gpt-oss
        Notation("", "", harmony=True),
    ),
    (
        (">>>all", "<|start_header_id|>"),  # Functionary: everything that is said has a recipient
        Notation(calls=CallNotation(Style.NAMED, open=">>>", middle="\n"), dropped=[">>>all\n"]),
    ),
    (
        ("<|think|>", "<|tool_calls|>", "<|content|>"),  # Solar: thoughts are messages of their own
        Notation(
            "<|think|>",
            "<|end|>",
            CallNotation(
                Style.NAMED,
                begin="<|tool_calls|>",
                open=f"<|tool_call:begin|>{ANY}<|tool_call:name|>",
                middle="<|tool_call:args|>",
                close="<|tool_call:end|>",
                end="<|calls|>",
            ),
            dropped=["<|begin|>assistant", "<|content|>", "<|end|>"],
        ),
    ),
    (
        ("<atem:function_calls>", "<|eom|>"),  # Muse: so are thoughts and calls
        Notation(
            "to=self<|message|>",
            "<|eom|>",
            CallNotation(
                Style.TAGGED,
                open=f'to={ANY}<|message|><atem:function_calls>\n<atem:invoke name="',
                middle='">',
                close="\n</atem:invoke>\n</atem:function_calls>",
                between="<|eom|><|start|>assistant",
                key_open='\n<atem:parameter name="',
                key_close='">',
                value_close="</atem:parameter>",
            ),
            dropped=["<|start|>assistant", "to=user<|message|>", "<|eom|>"],
        ),
    ),
)
# Notations of templates that write no calls, by what else is in them.
_KNOWN = (
    (
        "<|tool_list_start|>",
        CallNotation(Style.PYTHON, open="<|tool_call_start|>", close="<|tool_call_end|>"),
    ),
    ("List of tools: [", CallNotation(Style.PYTHON, between=" ")),
    ("<|tool_call|>", CallNotation(Style.JSON, begin="<|tool_call|>", listed=True)),
    ("[TOOL_CALLS]", CallNotation(Style.JSON, begin="[TOOL_CALLS]", listed=True)),
    ("<tool_call>", HERMES),
    ('"parameters"', BARE),
)


def tool(name: str) -> Values:
    """Return a tool that takes two texts."""
    texts = {key: {"type": "string", "description": "a text"} for key in _KEYS}
    parameters = {"type": "object", "properties": texts, "required": list(_KEYS)}
    return {"type": "function", "function": {"name": name, "description": "a tool", "parameters": parameters}}


def notation_of(source: str, render: Render, *, takes_calls: bool) -> Notation:
    """Return how the model of template `source` writes thoughts and calls; `render` renders values."""
    for marks, notation in _OWN:
        if all(mark in source for mark in marks):
            return notation
    text = source + _said(render)
    opening, closing = _thought(text)
    calls = _calls(source, render) if takes_calls else None
    dropped = [mark for mark in _DROPPED if mark in text and mark != closing]
    if calls is not None:  # what stands before it may be what was not thought, and the end of what was said
        begin = calls.begin.removeprefix(opening + closing)
        for mark in dropped:
            begin = begin.removeprefix(mark)
        calls = msgspec.structs.replace(calls, begin=begin)
    return Notation(opening, closing, calls, dropped=dropped)


def shows_system(render: Render) -> bool:
    """Return whether a system's message is in what the template writes."""
    turns = [{"role": "system", "content": _NAMES[0]}, {"role": "user", "content": "hello"}]
    return _NAMES[0] in (render({"messages": turns, "add_generation_prompt": True}) or "")


def _said(render: Render) -> str:
    """Return what the template writes of a thought and an answer: some put their marks together there."""
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": _SAID, "reasoning_content": _TEXTS[0][0]},
    ]
    return render({"messages": turns, "add_generation_prompt": False}) or ""


def _thought(text: str) -> tuple[str, str]:
    """Return the marks of a thought that are in `text`: the template, and what it writes of one."""
    for opening, closing in _THOUGHTS:
        if opening in text and closing in text:
            return opening, closing
    for found in _THOUGHT.finditer(text):
        if f"</{found[1]}>" in text:
            return found.group(), f"</{found[1]}>"
    return Notation().thought_open, Notation().thought_close


def _calls(source: str, render: Render) -> CallNotation | None:
    for ids in _IDS:
        found = _written(render, ids)
        if found is not None and all(len(mark) <= _MOST_MARK for mark in Notation(calls=found).marks):
            return found
    return next((notation for mark, notation in _KNOWN if mark in source), None)


def _written(render: Render, ids: Sequence[str]) -> CallNotation | None:
    """Return the notation in which the template writes calls with these ids, None when it cannot be seen."""
    body, both = (_body(render, ids[:count]) for count in (1, 2))
    if body is None or _NAMES[0] not in body:
        return None
    if _NAMES[0] not in ids[0]:
        body, both = (None if text is None else _with_any(text, ids) for text in (body, both))
    assert body is not None
    for read in (_json, _python, _braced, _named, _tagged):
        if (found := read(body, both)) is not None:
            return _with_end(found, both)
    return None


def _with_end(calls: CallNotation, both: str | None) -> CallNotation:
    """Return `calls` with the end that only several calls have, if there is one."""
    if both is None or calls.end.strip() or not calls.close.strip():
        return calls
    return msgspec.structs.replace(calls, end=both.rpartition(calls.close)[2])


def _with_any(text: str, ids: Sequence[str]) -> str:
    """Return `text` with ANY in the place of what is another one in each call."""
    return re.sub("|".join([*ids, r'(?<=index=")\d+(?=")']), ANY, text)


def shows_calls(render: Render) -> bool:
    """Return whether an assistant's calls are in what the template writes."""
    turn = {"role": "user", "content": "hello"}
    shared = {"messages": [turn], "add_generation_prompt": False}
    written = [_with_calls(render, shared, ids[:1]) or "" for ids in _IDS]
    return any(text in one for one in written for text in (_NAMES[0], _TEXTS[0][0]))


def _body(render: Render, ids: Sequence[str]) -> str | None:
    """Return what the template writes of an assistant's turn that is one call for each of `ids`."""
    user = {"role": "user", "content": "hello"}
    shared = {
        "messages": [user],
        "tools": [tool(name) for name in _NAMES],
        "add_generation_prompt": False,
    }
    said = render({**shared, "messages": [user, {"role": "assistant", "content": _SAID}]})
    text = _with_calls(render, shared, ids)
    return None if said is None or text is None or _TEXTS[0][0] not in text else _differing(said, text)


def _with_calls(render: Render, shared: Values, ids: Sequence[str]) -> str | None:
    """Return what the template writes of `shared` with one call for each of `ids` behind its messages.

    None when it refuses all the ways in which such a turn comes.
    """
    refused: str | None = None
    for content, arguments in (("", dict), ("", json.dumps), (None, dict), (None, json.dumps)):
        calls = [
            {
                "id": one,
                "type": "function",
                "function": {"name": name, "arguments": arguments(dict(zip(_KEYS, texts, strict=True)))},
            }
            for one, name, texts in zip(ids, _NAMES, _TEXTS, strict=False)
        ]
        turn = {"role": "assistant", "content": content, "tool_calls": calls}
        text = render({**shared, "messages": [*shared["messages"], turn]})
        if text is not None and _TEXTS[0][0] in text:
            return text
        refused = refused or text
    return refused


def _differing(said: str, text: str) -> str:
    """Return what `text` has in the place of what was `said`."""
    theirs, ours = _SEGMENT.findall(said), _SEGMENT.findall(text)
    start = _common(theirs, ours)
    tail = said.rpartition(_SAID)[2]
    body = "".join(ours[start:])
    if tail and body.endswith(tail):
        return body[: len(body) - len(tail)]
    end = _common(_SEGMENT.findall(tail)[::-1], _SEGMENT.findall(body)[::-1])
    return "".join(_SEGMENT.findall(body)[: -end or None])


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return how many elements two sequences begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


def _shared(first: str, second: str, *, end: bool = False) -> str:
    """Return what two texts begin (or end) with alike, in whole marks."""
    step = -1 if end else 1
    parts, others = _SEGMENT.findall(first)[::step], _SEGMENT.findall(second)[::step]
    return "".join(parts[: _common(parts, others)][::step])


def _around(before: str, behind: str, gap: str | None) -> dict[str, Any]:
    """Return the marks of a group of calls from the text before its first, behind its last, and between."""
    if gap is None:
        return {"open": before, "close": behind, "single": True}
    opening = _shared(before, gap, end=True)
    rest = gap[: len(gap) - len(opening)]
    closing = _shared(behind, rest)
    return {
        "begin": before[: len(before) - len(opening)],
        "open": opening,
        "close": closing,
        "between": rest[len(closing) :],
        "end": behind[len(closing) :],
    }


def _json_at(text: str, start: int, least: int) -> tuple[Any, int] | None:
    """Return the JSON value that begins at `start` and goes on behind `least`, and its end."""
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return (value, end) if end > least else None


def _json(body: str, both: str | None) -> CallNotation | None:
    name = body.index(_NAMES[0])
    for found in re.finditer(r"[{\[]", body[:name]):
        if (read := _json_at(body, found.start(), name)) is not None:
            value, end = read
            listed = isinstance(value, list)
            keys = _keys(value[0] if listed and value else value)
            if keys is None:
                return None
            before, behind = body[: found.start()], body[end:]
            around: dict[str, Any] | None = {"begin": before, "end": behind} if listed else None
            if around is None:
                around = _around(before, behind, _json_gap(both, found.start()))
            return CallNotation(Style.JSON, name_key=keys[0], arguments_key=keys[1], listed=listed, **around)
    return None


def _json_gap(both: str | None, start: int) -> str | None:
    """Return what stands between the two calls in JSON of which the first begins at `start`."""
    if both is None or _NAMES[1] not in both or (first := _json_at(both, start, start)) is None:
        return None
    second = both.find("{", first[1])
    return both[first[1] : second] if 0 <= second < both.index(_NAMES[1]) else None


def _keys(value: Any) -> tuple[str, str] | None:
    """Return the keys of a call's name and arguments; "" for a name that is itself a key."""
    if not isinstance(value, dict):
        return None
    if _NAMES[0] in value:
        return "", ""
    nested = value.get("function")
    value = nested if isinstance(nested, dict) else value
    names = [key for key, one in value.items() if one == _NAMES[0]]
    arguments = [
        key for key, one in value.items() if _KEYS[0] in (one if isinstance(one, dict | str) else ())
    ]
    return (names[0], arguments[0]) if names and arguments else None


def _named(body: str, both: str | None) -> CallNotation | None:
    start = body.index(_NAMES[0])
    end = start + len(_NAMES[0])
    brace = body.find("{", end)
    read = _json_at(body, brace, brace) if brace >= 0 else None
    if read is None or not isinstance(read[0], dict) or _KEYS[0] not in read[0]:
        return None
    gap = None
    if both is not None and _NAMES[1] in both and (first := _json_at(both, brace, brace)) is not None:
        gap = both[first[1] : both.index(_NAMES[1])]
    middle, before, behind = body[end:brace], body[:start], body[read[1] :]
    numbered = before.endswith("functions.") and re.match(r":\d+", middle) is not None
    if numbered:
        before, middle = before.removesuffix("functions."), re.sub(r"^:\d+", "", middle)
        gap = None if gap is None else gap.removesuffix("functions.")
    return CallNotation(Style.NAMED, middle=middle, numbered=numbered, **_around(before, behind, gap))


def _tagged(body: str, both: str | None) -> CallNotation | None:
    places = [body.find(text) for text in (_NAMES[0], _KEYS[0], _TEXTS[0][0], _KEYS[1], _TEXTS[0][1])]
    if places != sorted(places) or places[0] < 0:
        return None
    name, key, value, other, last = places
    head = body[name + len(_NAMES[0]) : key]
    key_close = body[key + len(_KEYS[0]) : value]
    gap, behind = body[value + len(_TEXTS[0][0]) : other], body[last + len(_TEXTS[0][1]) :]
    gap, behind = gap.replace(_KEYS[0], ANY), behind.replace(_KEYS[1], ANY)  # where each has a tag of its own
    key_open = _shared(head, gap, end=True)
    value_close = _shared(behind, gap[: len(gap) - len(key_open)])
    if not (key_open.strip() and key_close.strip() and value_close.strip()):
        return None
    between = None
    if both is not None and (at := both.find(_NAMES[1])) >= 0:
        ended = _TEXTS[0][1] + value_close.replace(ANY, _KEYS[1])
        between = both[both.index(_TEXTS[0][1]) + len(ended) : at]
    return CallNotation(
        Style.TAGGED,
        middle=head[: len(head) - len(key_open)],
        key_open=key_open,
        key_close=_TYPE.sub(ANY, key_close),
        value_close=value_close,
        **_around(body[:name], behind[len(value_close) :], between),
    )


def _python(body: str, _both: str | None) -> CallNotation | None:
    start, last = body.index(_NAMES[0]), body.rfind(_TEXTS[0][1])
    if not body.startswith("(" + _KEYS[0] + "=", start + len(_NAMES[0])):
        return None
    behind = body[last + len(_TEXTS[0][1]) :].lstrip("\"'")
    return CallNotation(
        Style.PYTHON,
        open=body[:start].removesuffix("["),
        close=behind.removeprefix(")").removeprefix("]"),
        between=" ",
    )


def _braced(body: str, both: str | None) -> CallNotation | None:
    start, last = body.index(_NAMES[0]), body.rfind(_TEXTS[0][1])
    head = re.compile(
        re.escape(_NAMES[0]) + r"\s*\{\s*" + _KEYS[0] + r"\s*:\s*(.*?)" + _TEXTS[0][0], re.DOTALL
    )
    if (found := head.match(body, start)) is None:
        return None
    quote, behind = found[1], body[last + len(_TEXTS[0][1]) :]
    behind = behind.removeprefix(quote).removeprefix("}")
    gap = None
    if both is not None and (at := both.find(_NAMES[1])) >= 0:
        gap = both[both.index(_TEXTS[0][1]) + len(_TEXTS[0][1] + quote + "}") : at]
    return CallNotation(Style.BRACED, quote=quote, **_around(body[:start], behind, gap))
