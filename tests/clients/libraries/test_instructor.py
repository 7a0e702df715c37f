"""Instructor has answers follow a schema, by a named tool or by the form of the answer."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest
from calls import MESSAGES, Person, Place

instructor = pytest.importorskip("instructor")
pytestmark = [pytest.mark.engine, pytest.mark.libraries]


def by_openai(place: Place, mode: str, key: str | None = None) -> Any:
    client = openai.OpenAI(base_url=place.v1, api_key=key or place.key, max_retries=0)
    return instructor.from_openai(client, mode=instructor.Mode[mode])


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "RESPONSES_TOOLS"])
def test_an_answer_is_an_object(place: Place, mode: str) -> None:
    person = by_openai(place, mode).chat.completions.create(
        model="caller", messages=MESSAGES, response_model=Person, max_tokens=200, max_retries=0
    )
    assert isinstance(person, Person)


def test_an_object_grows_in_a_stream(place: Place) -> None:
    parts = list(
        by_openai(place, "TOOLS").chat.completions.create_partial(
            model="caller", messages=MESSAGES, response_model=Person, max_tokens=200
        )
    )
    assert parts[-1].name in ("Ada", "Bob")


def test_anthropics_tools_give_an_object_too(place: Place) -> None:
    client = instructor.from_anthropic(anthropic.Anthropic(base_url=place.url, api_key=place.key))
    person = client.chat.completions.create(
        model="caller", messages=MESSAGES, response_model=Person, max_tokens=200, max_retries=0
    )
    assert isinstance(person, Person)


def test_errors_name_what_was_wrong(place: Place) -> None:
    with pytest.raises(Exception, match="There is no"):
        by_openai(place, "TOOLS").chat.completions.create(
            model="absent", messages=MESSAGES, response_model=Person, max_retries=0
        )
    with pytest.raises(Exception, match="API keys"):
        by_openai(place, "TOOLS", "sk-somebody-else").chat.completions.create(
            model="caller", messages=MESSAGES, response_model=Person, max_retries=0
        )
