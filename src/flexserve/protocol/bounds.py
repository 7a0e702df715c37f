"""What a field of a message may hold: bounded numbers and texts. The structs of messages and of values."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

# A prompt is the largest thing that crosses the boundary; 1 MiB of text is ~250k tokens.
MAX_TEXT = 1 << 20
MAX_MESSAGES = 4096
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MAX_TOOL_CALLS = 128
MAX_SCHEMA = 1 << 16  # characters of a JSON schema, of a grammar, or of all tools of a request together
MAX_TEXTS = 2048  # of one request for embeddings
MAX_TOKENS = 1 << 18  # that are given as such; a text of MAX_TEXT characters has seldom more
MAX_PINS = 64
MAX_SEALED = (4 << 20) + (4 << 10)  # bytes of a sealed request: its largest content, and what sealing adds
MAX_CONFIGURED = 1024  # models that are served in other ways than usual

Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Serial = Annotated[int, Meta(ge=0, le=1 << 53)]
Millis = Annotated[float, Meta(ge=0, le=1e12)]
# How long a model keeps its memory after its last use; 0: give it back at once, -1: for ever. Memory
# that the OS recalls goes in any case.
KeepAlive = Annotated[float, Meta(ge=-1, le=1e9)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Short = Annotated[str, Meta(max_length=2048)]
Label = Annotated[str, Meta(max_length=128)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Nonce = Annotated[bytes, Meta(min_length=8, max_length=64)]  # as EAT's are (RFC 9711)
Certificate = Annotated[bytes, Meta(max_length=1 << 16)]
Schema = Annotated[str, Meta(max_length=MAX_SCHEMA)]


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value inside of a message; a field that is not of it is a protocol error."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """One of the things that a world can say: its tag is its name."""
