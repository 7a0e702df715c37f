"""Receipts of sealed requests: what was asked and answered, by which weights, signed by the world's key."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from flexserve.attestation.receipt import Receipt
from flexserve.errors import FlexServeError
from flexserve.protocol.answers import Finished
from flexserve.protocol.requests import Embed, Generate
from flexserve.protocol.sampling import Sampling
from flexserve.trusted.sessions.clock import Clock

if TYPE_CHECKING:
    from flexserve.trusted.sessions.session import Session


# Fields of Sampling that are of a request's contents, and may be long.
_CONTENTS = {"stop", "stop_token_ids", "logit_bias", "dry_sequence_breakers", "schema", "grammar"}


class Receipts:
    """Makes receipts. Thread-safe.

    `sign` returns a COSE_Sign1 by the world's key. `digests` returns the SHA-256, as hex, of an open model's
    GGUF and of that of the model that it adapts ("": none). `label`: what protects this world.
    """

    def __init__(
        self,
        sign: Callable[[bytes], bytes],
        digests: Callable[[str], tuple[str, str]],
        label: str,
        clock: Clock,
    ) -> None:
        self.digests = digests
        self._sign, self._label, self._clock = sign, label, clock
        self._numbers = itertools.count(1)

    def made(self, session: Session, end: Finished) -> bytes | None:
        """Return the receipt of an answer that ends well; None: it has none."""
        asked = session.asked
        if not isinstance(asked, Generate | Embed):
            return None
        receipt = Receipt(
            model=asked.model,
            gguf=bytes.fromhex(session.digests[0]),
            base=bytes.fromhex(session.digests[1]),
            request=session.request_hash,
            answer=session.answer_hash,
            token=session.token_hash,
            sampling=_without_contents(asked.sampling) if isinstance(asked, Generate) else "",
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


def _without_contents(sampling: Sampling) -> str:
    """Return `sampling` as JSON, without what quotes the request: the hash of that stands for it."""
    fields = msgspec.to_builtins(sampling)
    return msgspec.json.encode({name: fields[name] for name in fields if name not in _CONTENTS}).decode()
