"""What is to be continued, or to become a vector, as clients send it: texts, tokens, and lists of both."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints
from pydantic_core import PydanticCustomError

from flexserve.normal.api.media import refusal
from flexserve.protocol.bounds import MAX_TEXT, MAX_TOKENS
from flexserve.protocol.prompts import Entry, Prompt, TextPrompt, TokenPrompt
from flexserve.protocol.sampling import MAX_TOKEN

Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
_TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN)]
_Tokens = Annotated[list[_TokenId | Text], Field(min_length=1, max_length=MAX_TOKENS)]
Prompts = Text | Annotated[list[_TokenId | Text | _Tokens], Field(min_length=1, max_length=MAX_TOKENS)]


def entries_of(given: str | list[int | str | list[int | str]]) -> list[Entry]:
    """Return the texts of a request: a list with a number in it is one of them, another list has several.

    Raises PydanticCustomError for a list within one text.
    """
    if isinstance(given, str):
        return [given]
    if any(isinstance(one, int) for one in given):
        if any(isinstance(one, list) for one in given):
            raise PydanticCustomError("prompt", "Tokens and prompts are mixed", {"param": "prompt"})
        return [[one for one in given if not isinstance(one, list)]]
    return [one for one in given if not isinstance(one, int)]


def prompts_of(given: str | list[int | str | list[int | str]]) -> list[Prompt]:
    """Return the prompts of a request. Raises as `entries_of`."""
    return [TextPrompt(one) if isinstance(one, str) else TokenPrompt(one) for one in entries_of(given)]


def plain(given: Any) -> Any:
    """Return `given` with texts where it has objects, as llama-server takes them for models that see.

    Raises PydanticCustomError for what is no text.
    """
    if isinstance(given, list):
        return [_text_of(one) if isinstance(one, dict) else one for one in given]
    return _text_of(given) if isinstance(given, dict) else given


def _text_of(given: dict[str, Any]) -> Any:
    if given.get("multimodal_data"):
        raise refusal("Images and sounds", None)
    parts = given.get("content")
    if not isinstance(parts, list):
        return given.get("prompt_string", given)
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        raise refusal("Images and sounds", None)
    texts = [part.get("text") for part in parts]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else given
