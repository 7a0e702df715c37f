"""Secrets that clients brought for their next request, so that it needs no key agreement."""

from __future__ import annotations

import collections

from flexserve.protocol.sealed_request import SECRET, name_of, refusal

LIFE = 300_000  # milliseconds in which a secret is good
MOST = 1 << 12  # secrets; beyond them the oldest goes, and its client seals a new one


class NextSecrets:
    """The secrets of the last minutes by their names; each is given once. Not thread-safe."""

    def __init__(self) -> None:
        self._secrets: collections.OrderedDict[bytes, tuple[bytes, int]] = collections.OrderedDict()

    def keep(self, secret: bytes, now: int) -> None:
        """Keep `secret` for one request; nothing, if it is none."""
        while self._secrets and (next(iter(self._secrets.values()))[1] < now or len(self._secrets) >= MOST):
            self._secrets.popitem(last=False)
        if len(secret) == SECRET:
            self._secrets[name_of(secret)] = secret, now + LIFE

    def take(self, name: bytes, now: int) -> bytes:
        """Return the secret of that name, and forget it. Raises CallerError (`refusal`) without one."""
        secret, end = self._secrets.pop(name, (b"", 0))
        if end < now:
            raise refusal()
        return secret
