"""llguidance without its package: that looks up its own version, which takes longer than all the rest."""

from __future__ import annotations

from flexserve.trusted.bare_package import put_in_place

put_in_place("llguidance")

from llguidance._lib import LLMatcher, LLParserLimits, LLTokenizer  # noqa: E402
from llguidance._tokenizer import TokenizerWrapper  # noqa: E402

__all__ = ["LLMatcher", "LLParserLimits", "LLTokenizer", "TokenizerWrapper"]
