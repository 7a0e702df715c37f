"""The conversations of one model: KV in slots in memory, and sealed copies of it on disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from flexserve.protocol.trusted_app import IdleKv
from flexserve.trusted.engine.context import Context
from flexserve.trusted.kv.sealed import WORTHWHILE, SealedKv
from flexserve.trusted.kv.slots import Slot, choose, common_prefix, sharing

_END = 64  # tokens; a conversation that goes on without so many would wait longer for them to be sealed
_SEAL_SPEED = 300e6  # bytes per second, a cautious guess: what a recall's deadline leaves room for


class Conversations:
    """Slots of a context and the sealed KV of its model.

    `lock` is the open model's: slots change under it. It is never held while memory is asked for, nor
    while the engine thread seals. Methods belong to the engine thread, but for those at the end.
    """

    def __init__(self, context: Context, sealed: SealedKv, lock: threading.RLock) -> None:
        self._context, self._sealed, self._lock = context, sealed, lock
        self._slots = [Slot(number) for number in range(context.sequences)]

    def claim(self, owner: str, prompt: Sequence[int], known: Sequence[int]) -> tuple[Slot, int] | None:
        """Have a slot for a request, its memory there and kept from recalls.

        `known` are the tokens of `prompt` whose KV may be used again. Returns the slot and how many of
        them it has; None when all slots are busy, or one of them is about to have more of `known`: that is
        computed once. Give the slot back with `release`. Raises GrantRefusedError; no slot is taken then.
        """
        with self._lock:
            found = self._choose(owner, known)
            if found is None:
                return None
            slot, kept = found
            source = self._source(owner, known, kept)
            if source is not None and common_prefix(source[0].tokens, known) < source[1]:
                return None
            slot.busy = True
        try:
            if _loses_much(slot, kept):
                self._seal(slot, ask=True)  # it is somebody's conversation
            kept = self._resume(slot, owner, known, kept)
            if source is not None and kept + WORTHWHILE < source[1]:
                kept = self._copied(source[0], slot, source[1], kept)
            kept = self._context.take(slot.number, kept)
        except BaseException:
            slot.tokens = []
            self._context.release([slot.number], keep_grants=True)  # what of it there was granted for
            self.release(slot)
            raise
        slot.owner, slot.tokens, slot.coming = owner, list(known[:kept]), prompt
        return slot, kept

    def _choose(self, owner: str, known: Sequence[int]) -> tuple[Slot, int] | None:
        usable = self._context.usable
        return choose(self._slots, owner, known, lambda slot, shared: usable(slot.number, shared))

    def _source(self, owner: str, known: Sequence[int], kept: int) -> tuple[Slot, int] | None:
        """Return a slot in use of which a copy saves computing, and how many of `known` it will have."""
        found = sharing(self._slots, owner, known, self._context.usable_saved)
        return found if found is not None and found[1] > kept + WORTHWHILE else None

    def _copied(self, source: Slot, slot: Slot, shared: int, kept: int) -> int:
        """Copy the KV of `source` into `slot`; return how many tokens of use `slot` has then."""
        context, size = self._context, self._context.state_size(source.number)
        with self._sealed.staging(size, ask=True) as plain:
            if plain is None or context.save(source.number, plain) != size:
                return kept
            context.take(slot.number, 0)
            return shared if context.load(slot.number, plain) else 0

    def _resume(self, slot: Slot, owner: str, known: Sequence[int], kept: int) -> int:
        """Take sealed KV into `slot` where that saves computing; return how many of `known` it has then."""
        sealed = self._sealed.find(owner, known, self._context.usable_saved)
        if sealed is None or sealed[1] <= kept + WORTHWHILE:
            return kept
        entry, shared = sealed
        self._context.take(slot.number, 0)
        loaded = self._sealed.load(entry, lambda data: self._context.load(slot.number, data))
        return shared if loaded else 0

    def plaintext(self, owner: str, known: Sequence[int]) -> int:
        """Return the bytes of KV that `claim` would seal, or copy, or take in from a sealed copy."""
        with self._lock:
            found = self._choose(owner, known)
            if found is None:
                return 0
            slot, kept = found
            source = self._source(owner, known, kept)
        seals = _loses_much(slot, kept) and _is_worth_sealing(slot)
        sealed = self._sealed.find(owner, known, self._context.usable_saved)
        resumes = sealed[0].size if sealed is not None and sealed[1] > kept + WORTHWHILE else 0
        return max(
            resumes,
            self._context.state_size(slot.number) if seals else 0,
            self._context.state_size(source[0].number) if source is not None else 0,
        )

    def release(self, slot: Slot, *, keep: bool = True) -> None:
        """Take a slot back; with `keep` its KV stays for the next request."""
        with self._lock:
            if not keep:
                slot.tokens = []
            slot.busy, slot.coming = False, ()
            slot.last_used = time.monotonic()

    def unsealed(self) -> list[Slot]:
        """Return the idle slots whose KV is worth sealing, the one used longest ago first."""
        with self._lock:
            return [slot for slot in self._idle() if _is_worth_sealing(slot)]

    def slot(self, number: int) -> Slot:
        """Return the slot of a sequence."""
        return self._slots[number]

    def state_size(self, slot: Slot) -> int:
        """Return the bytes that sealing `slot` needs for its plaintext."""
        return self._context.state_size(slot.number)

    def seal_idle(self, slot: Slot) -> None:
        """Seal an idle slot, unless it was recalled meanwhile."""
        with self._lock:
            if slot.busy or slot.sealing or not slot.tokens:
                return
            slot.sealing = True
        try:
            self._seal(slot, ask=True)
        finally:
            with self._lock:
                slot.sealing = False

    def _seal(self, slot: Slot, *, ask: bool) -> None:
        """Seal the KV of a slot that nobody else uses, if it is worth it and not sealed yet."""
        if not _is_worth_sealing(slot):
            return
        number, size = slot.number, self._context.state_size(slot.number)
        self._sealed.save(
            slot.owner, slot.tokens, size, lambda data: self._context.save(number, data), ask=ask
        )
        slot.sealed = True  # or it cannot be: trying again at every turn would help nobody

    # ---- any thread, under the lock ---------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a request uses a slot now."""
        return any(slot.busy for slot in self._slots)

    def committed(self) -> tuple[int, int]:
        """Return the committed bytes of (idle KV, KV in use)."""
        idle = self._context.kv.committed([slot.number for slot in self._idle()])
        return idle, self._context.kv.committed() - idle

    def seal_before(self, deadline: float) -> None:
        """Seal idle KV while `deadline` (monotonic seconds) leaves time for it, asking for no memory.

        The plaintext needs room for a moment, which has to be granted already. Not while the
        engine thread computes with this context.
        """
        for slot in self.unsealed():
            size = self._context.state_size(slot.number)
            if size / _SEAL_SPEED <= (deadline - time.monotonic()) / 2:
                self._seal(slot, ask=False)

    def idle(self, model: str) -> list[IdleKv]:
        """Return the idle KV in memory, as that of `model`, the one used longest ago first."""
        with self._lock:
            return [self._described(slot, model) for slot in self._idle()]

    def _described(self, slot: Slot, model: str) -> IdleKv:
        size, tokens = self._context.kv.committed([slot.number]), len(slot.tokens)
        return IdleKv(
            *(model, slot.number, size),
            touched=size * min(tokens, self._context.size) // self._context.size,
            tokens=tokens,
            last_used=slot.last_used,
            sealed=slot.sealed,
            worth_sealing=_is_worth_sealing(slot),
        )

    def give_up(self, size: int, *, keep_grants: bool, sequence: int | None = None) -> int:
        """Release idle KV, that used longest ago first, until `size` bytes went; return the bytes.

        `sequence`: of this one alone.
        """
        freed = 0
        for slot in self._idle():
            if sequence not in (None, slot.number):
                continue
            if freed >= size:
                break
            self._sealed.counters.dropped += _is_worth_sealing(slot)
            slot.tokens = []
            freed += self._context.release([slot.number], keep_grants=keep_grants)
        return freed

    def _idle(self) -> list[Slot]:
        has_memory = self._context.kv.holds
        return sorted(
            (s for s in self._slots if not (s.busy or s.sealing) and has_memory(s.number)),
            key=lambda s: s.last_used,
        )


def _loses_much(slot: Slot, kept: int) -> bool:
    """Return whether a prompt that uses the first `kept` tokens of `slot` takes more from its conversation
    than its end: clients send an answer back as other tokens than it was generated in, or ask again.
    """
    return len(slot.tokens) - kept > (_END if kept else 0)


def _is_worth_sealing(slot: Slot) -> bool:
    return not slot.sealed and len(slot.tokens) >= WORTHWHILE
