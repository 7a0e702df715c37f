"""What every library is asked to do, and where."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pydantic
from real_server import KEY

PROJECT = Path(__file__).parents[3]

QUESTION = "What is FlexServe?"
MESSAGES = [{"role": "user", "content": QUESTION}]
ANSWER = "It is sunny."  # of the model `agent`, also to the result of the tool that it called


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where the server is: `url`, and `v1` below it."""

    url: str
    key: str = KEY

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


class Person(pydantic.BaseModel):
    """Somebody."""

    name: Literal["Ada", "Bob"]
    age: int = pydantic.Field(ge=18, le=99)


def weather(city: str) -> str:
    """Say how the weather is in a city."""
    return f"sunny in {city}"


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Say how the weather is in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
