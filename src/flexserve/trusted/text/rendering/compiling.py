"""What llguidance may spend on a grammar, and what it says of one that it does not take."""

from __future__ import annotations

import re

from flexserve.trusted.text.guidance import LLMatcher, LLParserLimits, LLTokenizer

# Steps of lexer and parser are counted, not timed: the same schema fails or passes everywhere.
LIMITS = LLParserLimits(
    max_items_in_row=4000,  # ways in which a text may go on at one place
    initial_lexer_fuel=1_000_000,  # some 20 ms of compiling
    step_lexer_fuel=200_000,  # some 15 ms for a token
    step_max_items=100_000,  # some 5 ms for a token
    max_lexer_states=50_000,  # of 1 to 2 kB
    max_grammar_size=200_000,  # symbols
    verbose_errors=False,  # they would quote the answer
)
_BYTES = LLTokenizer("byte")
_KEYWORDS = frozenset(
    (
        *("uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems", "not", "if"),
        *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "propertyNames"),
        *("then", "else", "$dynamicRef", "$recursiveRef"),
    )
)
_UNIMPLEMENTED = re.compile(r'Unimplemented keys: \["([^"]+)"')
_REASONS = {
    "oneOf constraints": "alternatives of its 'oneOf' do not exclude each other by type or by a tag",
    "Unsatisfiable": "nothing fits it",
    "NoExtension": "nothing fits it",
    "Unknown format": "its 'format' is unknown",
    "regex parse error": "its 'pattern' has parts that cannot be followed, as look-around",
    "Unimplemented keys": "one of its keywords cannot be enforced",
    "not disjoint": "its 'patternProperties' overlap",
    "too large": "it becomes too large a grammar",
}


def compile_error(grammar: str) -> str:
    """Return why `grammar` cannot be compiled ("" if it can): the engine's words, which quote it."""
    matcher = LLMatcher(_BYTES, grammar, log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # much of the work is done for the first token only
    return matcher.get_error()


def reason(error: str) -> str:
    """Return the engine's reason not to follow a schema without what it quotes of that."""
    if (found := _UNIMPLEMENTED.search(error)) and found[1] in _KEYWORDS:
        return f"{found[1]!r} cannot be enforced"
    for words, why in _REASONS.items():
        if words in error:
            return why
    return "it is no sound schema, or too complex"
