"""Conversations that left memory: sealed by the application, kept on a disk, found by their tokens.

Which tokens one stands for is known here alone, in memory: they are what somebody said, so no disk has
them in clear. Of what an earlier process has sealed only the owner is known, as a digest. Such a stranger is
taken in when its owner asks. How much of the prompt the application does not compute then tells what it is.
"""

from __future__ import annotations

import dataclasses
import struct
import time
from collections.abc import Iterator, Sequence

from flexserve.errors import FlexServeError
from flexserve.tee_client.messages import KEPT_PART, Ask, Status, broken, numbers_of, pseudonym
from flexserve.tee_client.services import Services
from flexserve.trusted.kv.slots import common_prefix
from flexserve.trusted.store.aead import SALT_SIZE, TAG_SIZE
from flexserve.trusted.store.manifest import Manifest

WORTHWHILE = 32  # tokens; fewer are computed as fast as they are read
_MOST_FILES = 256  # of one model
_TRIES = 3  # to find that a stranger is of use
UNTOLD = -1  # a token that the application alone knows, of a sealed request
_HEAD = struct.Struct(f"<Q{SALT_SIZE}s2Q")  # bytes of plaintext, salt, owner
_MOST_BYTES = 1 << 36  # of one conversation


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SealedSequence:
    """One sealed conversation."""

    name: str  # where it is kept
    owner: str  # a pseudonym, as all owners here
    tokens: Sequence[int]
    size: int  # bytes of plaintext
    salt: bytes
    tries: int = 0  # of a stranger, in vain


class SealedKv:
    """The sealed conversations of one open model. Belongs to who has the link's turn."""

    def __init__(self, services: Services, manifest: Manifest, number: int, quota: int) -> None:
        """`number`: of the open model; `quota`: bytes on disk, the newest are kept when it is reached."""
        self.app, self._kept, self.counters = services.app, services.kept_kv, services.counters
        self._manifest, self._number, self._quota = manifest, number, quota
        self._entries: list[SealedSequence] = []  # the oldest first
        self._strangers = list(self._scan())  # the next one to be tried first

    def find(self, owner: str, tokens: Sequence[int]) -> SealedSequence | None:
        """Return what is sealed that `tokens` go on from; None: nothing that saves much."""
        best = max(
            (entry for entry in self._entries if entry.owner == owner),
            key=lambda entry: common_prefix(entry.tokens, tokens),
            default=None,
        )
        if best is None or common_prefix(best.tokens, tokens) < WORTHWHILE:
            return None
        return best

    def stranger(self, owner: str) -> SealedSequence | None:
        """Return what an earlier process has sealed for `owner` that was tried least; None: nothing."""
        return next((each for each in self._strangers if each.owner == owner), None)

    def met(self, stranger: SealedSequence, tokens: Sequence[int]) -> None:
        """Record that a stranger was taken in, and begins with `tokens`, as far as is known."""
        if stranger in self._strangers:
            self._strangers.remove(stranger)
            self.counters.resumed_tokens += len(tokens)
            if len(tokens) >= WORTHWHILE:
                self._entries.append(dataclasses.replace(stranger, tokens=tuple(tokens)))
            elif stranger.tries + 1 < _TRIES:
                self._strangers.append(dataclasses.replace(stranger, tries=stranger.tries + 1))
            else:
                self._kept.forget(stranger.name)

    def _scan(self) -> Iterator[SealedSequence]:
        for place, (name, head) in enumerate(self._kept.heads(self._manifest)):
            size, salt, *whose = _HEAD.unpack(head)
            if place < _MOST_FILES and 0 < size <= _MOST_BYTES:
                yield SealedSequence(name, pseudonym((whose[0], whose[1])), (), size, salt)
            else:
                self._kept.forget(name)

    def save(self, sequence: int, owner: str, tokens: Sequence[int]) -> bool:
        """Seal the KV of an idle sequence, which is that of `tokens`; return whether it was done.

        It takes memory that is granted and unused. Never raises for want of memory or disk.
        """
        reply = self.app.ask(Ask.KEEP, self._number, sequence)
        if reply.status is not Status.DONE:
            return False
        size, salt = reply.values[0], reply.payload
        if not 0 < size <= _MOST_BYTES or len(salt) != SALT_SIZE:
            raise broken("what it says of sealed KV is none")
        try:
            head = _HEAD.pack(size, salt, *numbers_of(owner))
            name = self._kept.write(self._manifest, head, self._parts(size))
        except FlexServeError:
            return False  # the disk is full
        entry = SealedSequence(name, owner, tuple(tokens), size, salt)
        for old in list(self._entries):
            is_known = UNTOLD not in old.tokens[:1]  # else nobody knows whether it is the same conversation
            if is_known and old.owner == owner and common_prefix(old.tokens, tokens) == len(old.tokens):
                self.forget(old)
        self._entries.append(entry)
        while self._is_too_much():
            self.forget(self._strangers[-1] if self._strangers else self._entries[0])
        self.counters.sealed += 1
        return True

    def _is_too_much(self) -> bool:
        kept = [*self._strangers, *self._entries]
        return len(kept) > 1 and (sum(each.size for each in kept) > self._quota or len(kept) > _MOST_FILES)

    def _parts(self, size: int) -> Iterator[bytes]:
        for number, length in enumerate(_lengths(size)):
            reply = self.app.do(Ask.KEPT, self._number, number)
            if len(reply.payload) != length:
                raise broken("a part of sealed KV is none")
            yield reply.payload

    def load(self, sequence: int, entry: SealedSequence) -> bool:
        """Have an idle sequence go on from a sealed one; return whether it does.

        What does not authenticate or fit is forgotten and counted; where memory is short nothing is.
        """
        began = time.monotonic()
        numbers = (sequence, entry.size, *numbers_of(entry.owner))
        reply = self.app.ask(Ask.RESUME, self._number, *numbers, payload=entry.salt)
        if reply.status is Status.REFUSED:
            return False
        taken = reply.status is Status.DONE
        try:
            for number, part in enumerate(self._kept.read(entry.name, list(_lengths(entry.size)))):
                taken = taken and (
                    self.app.ask(Ask.RESUMED, self._number, number, payload=part).status is Status.DONE
                )
        except FlexServeError:
            taken = False
        if taken:
            self.counters.resumed += 1
            self.counters.resumed_tokens += len(entry.tokens)
            self.counters.resumed_ms += 1000 * (time.monotonic() - began)
        else:
            self.counters.damaged += 1
            self.forget(entry)
        return taken

    def forget(self, entry: SealedSequence) -> None:
        """Remove a sealed conversation. Always safe."""
        for kept in (self._entries, self._strangers):
            if entry in kept:
                kept.remove(entry)
        self._kept.forget(entry.name)


def _lengths(size: int) -> Iterator[int]:
    """Yield the bytes of each part of sealed KV, with its tag."""
    for first in range(0, size, KEPT_PART):
        yield min(KEPT_PART, size - first) + TAG_SIZE
