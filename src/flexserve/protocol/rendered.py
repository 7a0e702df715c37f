"""What is asked of a secure world that renders no template (trusted-app/): a prompt that its sender rendered.

    magic 4 | tokens to say 4 | start 4 | lengths: name, sampling, told 12 | parts 4 | shape 32 |
    length of each part 4 … | the model's name | sampling | told | the parts

It stands in the place of a message in a sealed request (`Content.asked`). The struct is `Asked` of
trusted-app/messages.h; numbers are little-endian, texts UTF-8.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Sequence

import msgspec

from flexserve.errors import CallerError
from flexserve.protocol.bounds import Count, KeepAlive, Message, Name, Serial, Struct
from flexserve.protocol.messages import Query
from flexserve.protocol.prompts import AskTemplate, ToTokens
from flexserve.protocol.requests import Convert, Warm

_HEAD = struct.Struct("<4s6I32s")
_MAGIC = b"FXR1"
NO_SHAPE = bytes(32)
MOST = (1 << 32) - 1  # tokens to say


class Told(Struct, frozen=True, omit_defaults=True):
    """The terms of a request (requests.Terms), which the normal world reads. Its owner is not among them."""

    priority: int = 0
    next_model: Name | None = None
    keep_alive: KeepAlive | None = None


class Pieces(Message, frozen=True):
    """More of the answer to a rendered prompt, as the bytes of so many tokens: a character may be cut."""

    request: Serial
    data: bytes
    tokens: Count


@dataclasses.dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, for a model.

    `parts`: control tokens are meant by name in the first one, the third one, and so on, and never in the
    others: what people said in a conversation stays text. `sampling`: a Sampling of messages.h, with its
    lists. `most`: tokens to say, from 1 on. `start`: the token that begins a text goes first, where the model
    has one. `shape`: of what it was rendered by (`shape_of`), so that nobody can bring in another template.
    `told`: what the normal world reads, in MessagePack.
    """

    model: str
    parts: tuple[str, ...]
    sampling: bytes
    most: int = MOST
    start: bool = True
    shape: bytes = NO_SHAPE
    told: bytes = b""

    def encoded(self) -> bytes:
        """Return it as it is sealed. Raises CallerError for text that is none."""
        try:
            name, *texts = (text.encode() for text in (self.model, *self.parts))
        except UnicodeEncodeError:
            raise CallerError("The prompt is not valid Unicode text.", hint="Send it as UTF-8.") from None
        sizes = (len(name), len(self.sampling), len(self.told), len(texts))
        head = _HEAD.pack(_MAGIC, self.most, self.start, *sizes, self.shape)
        lengths = struct.pack(f"<{len(texts)}I", *map(len, texts))
        return b"".join((head, lengths, name, self.sampling, self.told, *texts))


def shape_of(template: str, added: Sequence[str]) -> bytes:
    """Return the digest of what prompts are rendered by.

    `added`: the texts of a vocabulary's tokens, in their order, that are controls, unknown or declared by its
    file.
    """
    return hashlib.sha256("\0".join((template, *added)).encode()).digest()


def cannot_seal(what: str) -> CallerError:
    """Return the error for what no secure world inside a machine does in sealed requests."""
    return CallerError(
        f"The secure world inside the machine cannot {what} in sealed requests.",
        hint="Leave that out, or ask a server that was started with `--secure-world host`.",
        code="secure_world_inside",
    )


def passed(asked: Query | Warm | Convert) -> Rendered:
    """Return a question that the normal world reads and answers: only its answer is sealed.

    Raises CallerError for one that has a text, which the normal world must not read.
    """
    if isinstance(asked, Convert) and asked.source not in (AskTemplate(), ToTokens("")):
        raise CallerError(
            "The secure world inside the machine converts no texts that are sealed.",
            hint="Ask the server itself, unsealed.",
            code="secure_world_inside",
        )
    model = "" if isinstance(asked, Query) else asked.model
    return Rendered(model, (), b"", most=0, start=False, told=msgspec.msgpack.encode(asked))
