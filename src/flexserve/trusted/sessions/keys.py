"""The keys that requests are sealed to. They are in this process only, and change."""

from __future__ import annotations

import dataclasses
import threading

from flexserve.protocol.sealed_request import PrivateKey, key_id_of, key_pair
from flexserve.trusted.sessions.clock import Clock

LIFE = 2 * 60 * 60 * 1000  # milliseconds; after half of it, new attestations have another key


@dataclasses.dataclass(frozen=True, slots=True)
class SealingKey:
    """A key, its public half as protocol.sealed_request has it; `ends` in milliseconds since 1970."""

    public: bytes
    ends: int
    private: PrivateKey = dataclasses.field(repr=False)


class SealingKeys:
    """The key for new attestations, and the one before it while it lives. Thread-safe.

    Restarting makes other keys: what was sealed to a process that ended is refused.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._keys = [_new(clock())]  # the newest first

    def current(self) -> SealingKey:
        """Return the key that a new attestation is to name: it lives for half of LIFE at least."""
        with self._lock:
            now = self._clock()
            if self._keys[0].ends - now < LIFE // 2:
                self._keys.insert(0, _new(now))
            self._keys = [key for key in self._keys if key.ends > now]
            return self._keys[0]

    def private(self, key_id: bytes) -> PrivateKey:
        """Return the private key named `key_id`.

        It is another one where the name is unknown or the key's life is over: opening fails then, and takes
        the time that it always takes.
        """
        newest = self.current()
        with self._lock:
            found = [key for key in self._keys if key_id_of(key.public) == key_id]
        return (found or [newest])[0].private


def _new(now: int) -> SealingKey:
    private, public = key_pair()
    return SealingKey(public, now + LIFE, private)
