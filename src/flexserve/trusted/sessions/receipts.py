"""Receipts of sealed requests: what was asked and answered, by which weights, signed by the world's key."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from flexserve.attestation.receipt import Receipt
from flexserve.errors import FlexServeError
from flexserve.protocol.messages import Embed, Finished, Generate
from flexserve.trusted.sessions.clock import Clock

if TYPE_CHECKING:
    from flexserve.trusted.sessions.session import Session


class Receipts:
    """Makes receipts. Thread-safe.

    `sign` returns a COSE_Sign1 by the world's key. `digest` returns the SHA-256 of an open model's GGUF, in
    hex. `label`: what protects this world.
    """

    def __init__(
        self, sign: Callable[[bytes], bytes], digest: Callable[[str], str], label: str, clock: Clock
    ) -> None:
        self.digest = digest
        self._sign, self._label, self._clock = sign, label, clock
        self._numbers = itertools.count(1)

    def made(self, session: Session, end: Finished) -> bytes | None:
        """Return the receipt of an answer that ends well; None: it has none."""
        asked = session.asked
        if not isinstance(asked, Generate | Embed):
            return None
        sampling = asked.sampling if isinstance(asked, Generate) else None
        receipt = Receipt(
            model=asked.model,
            gguf=bytes.fromhex(session.gguf),
            request=session.request_hash,
            answer=session.answer_hash,
            token=session.token_hash,
            sampling="" if sampling is None else msgspec.json.encode(sampling).decode(),
            prompt_tokens=end.usage.prompt_tokens,
            answer_tokens=end.usage.completion_tokens,
            reason=end.reason,
            label=self._label,
            time=self._clock() // 1000,
            counter=next(self._numbers),
        )
        try:
            return self._sign(receipt.encoded())
        except FlexServeError:
            return None
