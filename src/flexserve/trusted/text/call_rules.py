"""Rules of llguidance's grammars for a call of a tool, in the notation of a model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flexserve.protocol.notation import ANY, CallNotation, Style
from flexserve.protocol.schema import prepared

_NEW_ID = "/[a-zA-Z0-9]{9}/"
_NUMBER = "/[0-9]{1,2}/"
_HARMONY = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>"

Tool = Mapping[str, Any]


def call_rules(
    notation: CallNotation | None,
    tools: Sequence[Tool],
    *,
    several: bool = False,
    begun: str = "",
    endings: Sequence[str] = (),
) -> str:
    """Return rules: `call` is one call of one of `tools` (OpenAI's tool objects). `notation` None: harmony's.

    `several`: or several calls, where the model's template writes more than one in a turn.
    `begun` is what the prompt has of it already; `endings` are the texts of tokens that end an answer. Of
    the tools' schemas, what cannot be enforced is ignored: they say how to call, not what is safe. Raises
    CallerError for parameters that are no schema.
    """
    rules = [
        f"call{number}: {_call(notation, tool['function']['name'], _parameters(tool))}"
        for number, tool in enumerate(tools)
    ]
    body = f"({' | '.join(f'call{number}' for number in range(len(tools)))})"
    if notation is None:
        return "\n".join([f"call: {body}", *rules])
    opening = notation.begin + notation.open
    if begun and opening.startswith(begun):
        opening = opening.removeprefix(begun)
    closing, between = notation.close + notation.end, notation.close + notation.between + notation.open
    for ending in endings:
        closing = closing.partition(ending)[0]
    if notation.in_list:
        opening, between, closing = f"{opening}[", ", ", f"]{closing}"
    more = ""
    if several and notation.writes_several and not any(ending in between for ending in endings):
        more = f"({_marks(between)} {body})*"
    return "\n".join([f"call: {_marks(opening)} {body} {more} {_marks(closing)}", *rules])


def _parameters(tool: Tool) -> dict[str, Any]:
    schema = prepared(tool["function"].get("parameters") or {"type": "object"}, lenient=True)
    schema.setdefault("type", "object")
    return schema


def _call(  # noqa: PLR0911  # a table of styles
    notation: CallNotation | None, name: str, schema: dict[str, Any]
) -> str:
    """Return the expression for a call of `name` without the marks around it."""
    if notation is None:
        return f"{quoted(_HARMONY.format(name))} {_json(schema)}"
    quoted_name = json.dumps(name, ensure_ascii=False)
    match notation.style:
        case Style.JSON if not notation.name_key:
            return f'{quoted(f"{{{quoted_name}: ")} {_json(schema)} "}}"'
        case Style.JSON:
            names, arguments = json.dumps(notation.name_key), json.dumps(notation.arguments_key)
            return f'{quoted(f"{{{names}: {quoted_name}, {arguments}: ")} {_json(schema)} "}}"'
        case Style.NAMED:
            written = f"{quoted(f'functions.{name}:')} {_NUMBER}" if notation.numbered else quoted(name)
            return f"{written} {_marks(notation.middle)} {_json(schema)}"
        case Style.TAGGED:
            return f"{_marks(name + notation.middle)} {_listed(schema, _tagged(notation), '')}"
        case Style.PYTHON:
            return f'{quoted(name + "(")} {_listed(schema, _keyword, ", ")} ")"'
        case Style.BRACED:
            return f'{quoted(name + "{")} {_listed(schema, _pair(notation), ",")} "}}"'


def _listed(schema: dict[str, Any], written: Callable[[str, Any], str], comma: str) -> str:
    """Return the expression for arguments in their order: those that are required, others as one likes."""
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    required = [key for key in schema.get("required") or () if key in properties]
    others = [key for key in properties if key not in required]
    between = f"{quoted(comma)} " if comma else ""
    parts = [written(key, _with_definitions(properties[key], schema)) for key in required]
    tail = ""
    for key in reversed(others):  # an optional one may be followed by those behind it
        one = written(key, _with_definitions(properties[key], schema))
        tail = f"({between}{one})? {tail}" if parts or not comma else f"({one} {tail})?".replace(" )", ")")
    return f" {between}".join(parts) + f" {tail}" if parts or tail else '""'


def _with_definitions(schema: Any, whole: dict[str, Any]) -> Any:
    """Return an argument's schema with the definitions that it may refer to."""
    definitions = {key: whole[key] for key in ("$defs", "definitions") if key in whole}
    return {**definitions, **schema} if isinstance(schema, dict) and definitions else schema


def _tagged(notation: CallNotation) -> Callable[[str, Any], str]:
    def written(key: str, schema: Any) -> str:
        words = ("true", "false") if f'string="{ANY}"' in notation.key_close else ("string", "object")
        typed = notation.key_close.replace(ANY, words[0] if _is_text(schema) else words[1])
        close = notation.value_close.replace(ANY, key)
        return f"{_marks(notation.key_open + key + typed)} {_value(schema, close)} {_marks(close)}"

    return written


def _pair(notation: CallNotation) -> Callable[[str, Any], str]:
    def written(key: str, schema: Any) -> str:
        if _is_text(schema) and notation.quote:
            value = f"{quoted(notation.quote)} {_value(schema, notation.quote)} {quoted(notation.quote)}"
        else:
            value = _json(schema)
        return f"{quoted(key + ':')} {value}"

    return written


def _keyword(key: str, schema: Any) -> str:
    return f"{quoted(key + '=')} {_json(schema)}"


def _is_text(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "string"


def _value(schema: Any, behind: str) -> str:
    """Return the expression for a value in front of the mark `behind`: texts are written without quotes."""
    if not _is_text(schema):
        return _json(schema)
    words = schema.get("enum")
    if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
        return f"({' | '.join(map(quoted, words))})"
    first, second = (re.escape(char).replace("/", r"\/") for char in (behind.strip() + "  ")[:2])
    return f"/([^{first}]|{first}[^{second}{first}])*/"


def _json(schema: Any) -> str:
    return f"%json {json.dumps(schema)}"


def _marks(text: str) -> str:
    """Return the expression for `text`, in which ANY stands for a new id."""
    parts = [quoted(part) if part else "" for part in text.split(ANY)]
    return f" {_NEW_ID} ".join(parts).strip() or '""'


def quoted(text: str) -> str:
    """Return the expression for exactly this text in llguidance's grammars."""
    return json.dumps(text, ensure_ascii=False)
