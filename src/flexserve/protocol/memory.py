"""How the worlds agree on memory: what is recalled and returned, asked for and granted, and what is pinned.

Sizes are bytes, durations are milliseconds.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from flexserve.protocol.bounds import MAX_PINS, Count, Message, Millis, Name, Serial, Short


class Recall(Message, frozen=True):
    """Give memory back. `demand` None asks for all that is not in use by a running request.

    `gentle`: at most `demand`, and only what neither a running request nor a pin needs. `reason`: for people.
    """

    serial: Serial
    demand: Count | None
    deadline: Millis
    gentle: bool = False
    reason: Short = ""


class Pin(Message, frozen=True):
    """Keep the weights of these models, and of no others, until nothing else meets a definite demand."""

    models: Annotated[list[Name], Meta(max_length=MAX_PINS)]


class Grant(Message, frozen=True):
    """Answer to NeedMemory: `size` bytes more are yours (0: refused, with the reason)."""

    serial: Serial
    size: Count
    reason: Short = ""


class Spare(Message, frozen=True):
    """Answer to WantSpare: so many bytes may be asked for now. Nothing is granted by it."""

    serial: Serial
    size: Count


class NeedMemory(Message, frozen=True):
    """Ask for a grant. Below `minimum` the request that needs it cannot make progress."""

    serial: Serial
    size: Count
    minimum: Count


class WantSpare(Message, frozen=True):
    """Ask how much memory nobody needs: weights could be brought back for which no request asks yet.

    `reason`: of which model, and why, for people.
    """

    serial: Serial
    size: Count
    reason: Short


class Returned(Message, frozen=True):
    """Memory went back unasked (an idle model's scratch, a closed model). `reason`: for people."""

    size: Count
    reason: Short = ""


class Recalled(Message, frozen=True):
    """Answer to Recall: what really went back, by our table and by the OS's own count."""

    serial: Serial
    returned: Count  # bytes, by the ownership table
    os_before: Count  # bytes the OS counted as ours before …
    os_after: Count  # … and after
    elapsed: Millis
    protected: Count  # bytes kept because a running request is using them
    plan: list[Short]  # what was given up, in order, for people
