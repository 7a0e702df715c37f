"""What a request confines the answer to, as a grammar: a JSON schema, a grammar, calls of tools."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

from flexserve.errors import CallerError
from flexserve.protocol.notation import HERMES
from flexserve.protocol.prompts import ChatPrompt
from flexserve.protocol.requests import Generate
from flexserve.protocol.schema import parse, prepared
from flexserve.trusted.text.call_rules import call_rules
from flexserve.trusted.text.chat_template import ChatTemplate, tools_of

# `no_forcing`: how a text is cut into tokens is the model's choice, also where there is but one text.
OPTIONS = '%llguidance {"no_forcing": true}'


@dataclasses.dataclass(frozen=True, slots=True)
class Constraint:
    """A grammar; `shown`: control tokens of the model's notation are text in it."""

    text: str
    shown: bool


def constraint(
    request: Generate, template: ChatTemplate, translate: Callable[[str], str], begun: str = ""
) -> Constraint | None:
    """Return the grammar for `request`'s answer, of which the prompt has `begun`; None when anything goes.

    `translate` makes rules of one of llama.cpp's, as rendering.Renderer.translate does. Raises CallerError.
    """
    prompt, schema, grammar = request.prompt, request.sampling.schema, request.sampling.grammar
    must_call = isinstance(prompt, ChatPrompt) and bool(prompt.must_call)
    if schema is None and grammar is None and not must_call:
        return None
    ways, rules = [], [OPTIONS]
    if isinstance(prompt, ChatPrompt) and prompt.tools is not None:
        ways.append("call")
        rules.append(_calls(prompt, template, begun))
    shown = bool(ways)
    if not must_call:
        ways.append("said" if shown and template.notation.harmony else "answer")
        rules.append('said: "<|channel|>final<|message|>" answer' if ways[-1] == "said" else "")
        rules.append(translate(grammar) if grammar is not None else answer_rule(schema or "{}"))
    return Constraint("\n".join([*filter(None, rules), f"start: {' | '.join(ways)}", ""]), shown)


def answer_rule(schema: str) -> str:
    """Return the rule of answers that follow the JSON schema `schema`; "{}" is any object.

    Raises CallerError (code "schema_unsupported") for what is known not to be enforceable.
    """
    described = parse(schema)
    if described in ({}, True):
        described = {"type": "object"}
    return f"answer: %json {json.dumps(prepared(described))}"


def _calls(prompt: ChatPrompt, template: ChatTemplate, begun: str) -> str:
    tools = tools_of(prompt)
    wanted = [tool for tool in tools if not prompt.must_call or tool["function"]["name"] in prompt.must_call]
    if not wanted:
        raise CallerError("There is no tool of that name to call.", hint="Name one of the tools.")
    notation = template.notation
    return call_rules(
        None if notation.harmony else notation.calls or HERMES,
        wanted,
        several=prompt.several,
        begun=begun,
        endings=template.endings,
    )
