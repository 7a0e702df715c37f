"""A sealed request and its sealed answer, as both worlds pass them on."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from flexserve.protocol.bounds import MAX_SEALED, Message, Serial


class Sealed(Message, frozen=True):
    """A request that only the secure world can read (protocol.sealed_request).

    Answered by SealedPart…. One that cannot be opened gets the same Failed, whatever the reason.
    """

    request: Serial
    body: Annotated[bytes, Meta(max_length=MAX_SEALED)]


class SealedPart(Message, frozen=True):
    """More of a sealed answer (protocol.sealed_answer), for the client as it is. `last`: no more comes."""

    request: Serial
    data: Annotated[bytes, Meta(max_length=MAX_SEALED)]
    last: bool = False
