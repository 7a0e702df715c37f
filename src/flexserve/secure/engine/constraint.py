"""What a request confines the answer to, as a grammar: a JSON schema, a call of a tool, or either."""

from __future__ import annotations

from flexserve.core.calls import call_rule
from flexserve.core.grammar import Grammar
from flexserve.core.schema import schema_rule
from flexserve.errors import CallerError
from flexserve.secure.engine.text import ChatTemplate, tools_of
from flexserve.world.messages import ChatPrompt, Generate


def constraint(request: Generate, template: ChatTemplate) -> str | None:
    """Return the grammar for `request`'s answer, None when anything goes. Raises CallerError."""
    prompt, schema = request.prompt, request.sampling.schema
    must_call = isinstance(prompt, ChatPrompt) and bool(prompt.must_call)
    if schema is None and not must_call:
        return None
    grammar = Grammar()
    rules = []
    if isinstance(prompt, ChatPrompt) and prompt.tools is not None:
        rules += _call_rules(grammar, prompt, template)
    if schema is not None and not must_call:
        rules.append(schema_rule(grammar, schema))
    return grammar.text(" | ".join(rules))


def _call_rules(grammar: Grammar, prompt: ChatPrompt, template: ChatTemplate) -> list[str]:
    tools = tools_of(prompt)
    wanted = [tool for tool in tools if not prompt.must_call or tool["function"]["name"] in prompt.must_call]
    if wanted and template.call_form is not None:
        return [call_rule(grammar, template.call_form, wanted)]
    if not prompt.must_call:
        return []
    if not wanted:
        raise CallerError("There is no tool of that name to call.", hint="Name one of the tools.")
    raise CallerError(
        "How this model writes calls is unknown, so it cannot be made to write one.",
        hint='Use tool_choice "auto".',
        code="tools_unsupported",
    )
