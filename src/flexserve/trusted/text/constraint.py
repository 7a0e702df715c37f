"""What a request confines the answer to, as a grammar: a JSON schema, a grammar, calls of tools."""

from __future__ import annotations

import json
from collections.abc import Callable

from flexserve.errors import CallerError
from flexserve.protocol.calls import call_rules
from flexserve.protocol.messages import ChatPrompt, Generate
from flexserve.protocol.schema import parse, prepared
from flexserve.trusted.engine.vocabulary import ChatTemplate, tools_of

# `no_forcing`: how a text is cut into tokens is the model's choice, also where there is but one text.
OPTIONS = '%llguidance {"no_forcing": true}'


def constraint(request: Generate, template: ChatTemplate, translate: Callable[[str], str]) -> str | None:
    """Return the grammar for `request`'s answer, None when anything goes. Raises CallerError.

    `translate` makes rules of one of llama.cpp's, as rendering.Renderer.translate does.
    """
    prompt, schema, grammar = request.prompt, request.sampling.schema, request.sampling.grammar
    must_call = isinstance(prompt, ChatPrompt) and bool(prompt.must_call)
    if schema is None and grammar is None and not must_call:
        return None
    ways, rules = [], [OPTIONS]
    if isinstance(prompt, ChatPrompt) and prompt.tools is not None:
        calls = _calls(prompt, template)
        ways += ["call"] * len(calls)
        rules += calls
    if not must_call:
        ways.append("answer")
        rules.append(translate(grammar) if grammar is not None else answer_rule(schema or "{}"))
    return "\n".join([*rules, f"start: {' | '.join(ways)}", ""])


def answer_rule(schema: str) -> str:
    """Return the rule of answers that follow the JSON schema `schema`; "{}" is any object.

    Raises CallerError (code "schema_unsupported") for what is known not to be enforceable.
    """
    described = parse(schema)
    if described in ({}, True):
        described = {"type": "object"}
    return f"answer: %json {json.dumps(prepared(described))}"


def _calls(prompt: ChatPrompt, template: ChatTemplate) -> list[str]:
    tools = tools_of(prompt)
    wanted = [tool for tool in tools if not prompt.must_call or tool["function"]["name"] in prompt.must_call]
    if wanted and template.call_form is not None:
        return [call_rules(template.call_form, wanted)]
    if not prompt.must_call:
        return []
    if not wanted:
        raise CallerError("There is no tool of that name to call.", hint="Name one of the tools.")
    raise CallerError(
        "How this model writes calls is unknown, so it cannot be made to write one.",
        hint='Use tool_choice "auto".',
        code="tools_unsupported",
    )
