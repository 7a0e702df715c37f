"""A chat template in jinja2's sandbox.

A template is code inside a model file. The sandbox denies it attributes of Python objects; nothing but
the values it is given is in its reach. Those it may change (some templates collect in lists): each
rendering has a process of its own. It denies it neither time nor memory: that is the helper's part.
"""

from __future__ import annotations

import datetime
import json
import types
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from flexserve.trusted.text.rendering.jobs import Outcome, Result
from flexserve.trusted.text.rendering.probing import notation_of, shows_calls, shows_system

MAX_RENDERED = 4 << 20  # characters; a template that makes more of bounded messages is hostile
_MAX_INDENT = 16
_MOST_REFUSAL = 300  # characters of a template's own words
_TOO_MUCH = (MemoryError, RecursionError, OverflowError)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`, which marks for training what the model said."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return what stands in the block: here the mark means nothing."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Template:
    """A compiled template, or why it could not be compiled."""

    def __init__(self, source: str) -> None:
        environment = jinja2.sandbox.SandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(str(form)[:64])
        self._failure: Result | None = None
        try:
            tree = environment.parse(source)
            variables = jinja2.meta.find_undeclared_variables(tree)
            self._functions = "functions" in variables and "tools" not in variables
            self._takes_tools = "tools" in variables or self._functions
            self._takes_calls = self._takes_tools or _names(tree, "tool_calls")
            self._constants = [
                one.value for one in tree.find_all(jinja2.nodes.Const) if isinstance(one.value, str)
            ]
            self._source = source
            self._template = environment.from_string(source)
        except Exception as error:
            self._failure = _failed(error)

    def result(self, values: dict[str, Any] | None) -> Result:
        """Render it with `values`; with None, say what it takes. Raises nothing."""
        if self._failure is not None:
            return self._failure
        return self._look() if values is None else self._render(values)

    def _render(self, values: dict[str, Any]) -> Result:
        parts: list[str] = []
        size = 0
        values = {**_today(), **values}
        if self._functions:  # Firefunction's name of the tools, as a text
            values = {"functions": _to_json(values.get("tools") or []), **values}
        try:
            for part in self._template.generate(values):
                size += len(part)
                if size > MAX_RENDERED:
                    return Result(Outcome.LIMITS)
                parts.append(part)
            return Result(Outcome.DONE, "".join(parts))
        except _TemplateRefusal as refusal:
            return Result(Outcome.REFUSED, self._own_words(str(refusal)))
        except Exception as error:
            return _failed(error)

    def _look(self) -> Result:
        def render(values: dict[str, Any]) -> str | None:
            result = self._render({"bos_token": "", "eos_token": "", **values})
            return result.text if result.outcome is Outcome.DONE else None

        return Result(
            Outcome.DONE,
            takes_tools=self._takes_tools,
            takes_calls=self._takes_calls,
            takes_system=shows_system(render),
            shows_calls=self._takes_calls and shows_calls(render),
            notation=notation_of(self._source, render, takes_calls=self._takes_calls),
        )

    def _own_words(self, refusal: str) -> str:
        """Return what of a refusal stands in the template: the rest may quote the conversation."""
        known = [text for text in self._constants if text.strip() and refusal.startswith(text)]
        words = max(known, key=len, default="")
        return (
            words[:_MOST_REFUSAL] if words == refusal else f"{words[:_MOST_REFUSAL].rstrip()} …" * bool(words)
        )


def _today() -> dict[str, Any]:
    """Return the day in the variables that templates have for it, as llama-server writes it there."""
    today = datetime.date.today()
    return {"date_string": f"{today:%d %b %Y}", "datetime": f"{today:%b %d %Y}"}


def _failed(error: Exception) -> Result:
    """Return the end of a template that raised `error`: only its type, for its text may quote anything."""
    return Result(Outcome.LIMITS if isinstance(error, _TOO_MUCH) else Outcome.WRONG, type(error).__name__)


def _names(tree: jinja2.nodes.Template, key: str) -> bool:
    """Return whether a template looks for `key` in anything: `x.key`, `x["key"]`, `"key" in x`."""
    attributes = (node.attr for node in tree.find_all(jinja2.nodes.Getattr))
    constants = (node.value for node in tree.find_all(jinja2.nodes.Const))
    return key in (*attributes, *constants)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as models were trained on it; jinja2's own filter escapes it for HTML."""
    indent = None if indent is None else max(0, min(int(indent), _MAX_INDENT))
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_listed,
    )


def _listed(value: object) -> list[object]:
    """Return what a filter as `map` yields as a list. Raises TypeError for what is no JSON."""
    if isinstance(value, types.GeneratorType):
        return list(value)
    raise TypeError(type(value).__name__)


class _TemplateRefusal(Exception):  # noqa: N818
    """Raised by a template through raise_exception()."""


def _refuse(message: object = "") -> NoReturn:
    raise _TemplateRefusal(str(message))
