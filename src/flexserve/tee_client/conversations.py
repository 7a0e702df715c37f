"""The conversations of one open model: its sequences, in memory, and sealed copies of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from flexserve.protocol.trusted_app import IdleKv
from flexserve.tee_client.sealed_kv import WORTHWHILE, SealedKv, SealedSequence
from flexserve.trusted.kv.slots import Slot, choose, common_prefix, sharing

_END = 64  # tokens; a conversation that goes on without so many would wait longer for them to be sealed


class Conversations:
    """Slots are the model's sequences. `lock` guards them; it is not held while the application is asked.

    The application has the KV of all sequences in one, and gives it up as one, while no sequence is in use.
    Tokens of sealed requests are not known here: each is UNTOLD. So of an owner's conversations the longest
    is taken for the one that goes on; what of it is used again, the application decides.
    """

    def __init__(self, sealed: SealedKv, sequences: int, lock: threading.RLock) -> None:
        self._sealed, self._lock = sealed, lock
        self._strangers: dict[int, SealedSequence] = {}  # that sequences have, whose generation begins
        self._slots = [Slot(each) for each in range(sequences)]

    @property
    def busy(self) -> bool:
        """Whether a request uses a sequence. Under the lock."""
        return any(slot.busy for slot in self._slots)

    # ---- the engine thread ------------------------------------------------------------------------

    def claim(self, owner: str, prompt: Sequence[int], known: Sequence[int]) -> Slot | None:
        """Have a sequence for a request; None: all are in use, or one is about to have its prompt's KV.

        `known` are the tokens of `prompt` whose KV may be used again. Give it back with `release`.
        """
        with self._lock:
            found = choose(self._slots, owner, known)
            if found is None:
                return None
            slot, kept = found
            coming = sharing(self._slots, owner, known, lambda _count, shared: shared)
            if coming is not None and coming[1] > kept + WORTHWHILE:
                source, shared = coming
                if common_prefix(source.tokens, known) < shared:
                    return None
            slot.busy = True
        try:
            self._ready(slot, owner, known, kept)
        except BaseException:
            self.release(slot, keep=False)
            raise
        slot.owner, slot.coming = owner, prompt
        return slot

    def _ready(self, slot: Slot, owner: str, known: Sequence[int], kept: int) -> None:
        """Have a sequence hold as much of `known` as there is, and seal what it held of somebody else's."""
        if len(slot.tokens) - kept > (_END if kept else 0):
            self._seal(slot)  # it is somebody's conversation
        entry = self._sealed.find(owner, known)
        if (
            entry is not None
            and common_prefix(entry.tokens, known) > kept + WORTHWHILE
            and self._sealed.load(slot.number, entry)
        ):
            slot.tokens, slot.sealed = list(entry.tokens), True
            return
        stranger = self._sealed.stranger(owner)
        if (
            stranger is not None
            and not slot.tokens
            and len(known) >= WORTHWHILE
            and self._sealed.load(slot.number, stranger)
        ):
            self._strangers[slot.number] = stranger

    def began(self, slot: Slot, cached: Sequence[int]) -> None:
        """Record that the KV of a sequence began with `cached` when its generation did."""
        stranger = self._strangers.pop(slot.number, None)
        if stranger is not None:
            self._sealed.met(stranger, cached)

    def plaintext(self, owner: str, known: Sequence[int], size: int) -> int:
        """Return the bytes that `claim` seals, or takes in; `size`: of the KV of all sequences."""
        with self._lock:
            found = choose(self._slots, owner, known)
            if found is None:
                return 0
            slot, kept = found
            seals = len(slot.tokens) - kept > (_END if kept else 0) and _is_worth_sealing(slot)
        entry = self._sealed.find(owner, known)
        if entry is None or common_prefix(entry.tokens, known) <= kept + WORTHWHILE:
            entry = None if slot.tokens or len(known) < WORTHWHILE else self._sealed.stranger(owner)
        own = size // len(self._slots)
        return max(own if seals else 0, entry.size if entry is not None else 0)

    def release(self, slot: Slot, *, keep: bool = True) -> None:
        """Take a sequence back that says nothing any more; with `keep` its KV stays for the next request."""
        with self._lock:
            if not keep:
                slot.tokens, slot.sealed = [], False
            slot.busy, slot.coming, slot.last_used = False, (), time.monotonic()

    def seal_idle(self) -> None:
        """Seal the idle sequence that was used longest ago, as far as granted memory allows."""
        with self._lock:
            slots = self._unsealed()
            if not slots:
                return
            slots[0].sealing = True
        try:
            self._seal(slots[0])
        finally:
            with self._lock:
                slots[0].sealing = False

    def _seal(self, slot: Slot) -> None:
        if _is_worth_sealing(slot):
            self._sealed.save(slot.number, slot.owner, slot.tokens)
            slot.sealed = True  # or it cannot be: trying again at every turn would help nobody

    # ---- any thread, with the link's turn ----------------------------------------------------------

    def seal_before(self, deadline: float) -> None:
        """Seal idle sequences until the moment `deadline`, in memory that is granted and unused."""
        while time.monotonic() < deadline:
            with self._lock:
                slots = self._unsealed()
            if not slots:
                return
            self._seal(slots[0])

    # ---- any thread --------------------------------------------------------------------------------

    def unsealed(self) -> bool:
        """Return whether an idle sequence is worth sealing."""
        with self._lock:
            return bool(self._unsealed())

    def idle(self, model: str, size: int) -> IdleKv | None:
        """Return the KV of `size` bytes, if no sequence is in use: it goes as one."""
        with self._lock:
            if not size or self.busy or any(slot.sealing for slot in self._slots):
                return None
            unsealed = self._unsealed()
            return IdleKv(
                *(model, 0, size),
                touched=size,
                tokens=sum(len(slot.tokens) for slot in self._slots),
                last_used=max(slot.last_used for slot in self._slots),
                sealed=not unsealed,
                worth_sealing=bool(unsealed),
            )

    def gone(self) -> None:
        """Record that the KV of all sequences went. Under the lock."""
        self._sealed.counters.dropped += len(self._unsealed())
        for slot in self._slots:
            slot.tokens, slot.sealed = [], False

    def _unsealed(self) -> list[Slot]:
        return sorted(
            (slot for slot in self._slots if not (slot.busy or slot.sealing) and _is_worth_sealing(slot)),
            key=lambda slot: slot.last_used,
        )


def _is_worth_sealing(slot: Slot) -> bool:
    return not slot.sealed and len(slot.tokens) >= WORTHWHILE
