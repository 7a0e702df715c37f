"""Whom a server lets in: by which names it may be called, with which keys, and from which web pages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

from flexserve.normal.api.cors import Origins
from flexserve.normal.api.errors import HttpError, forbidden, rate_limited, unauthenticated
from flexserve.normal.api.keys import Key, Keys, Right
from flexserve.normal.audit_file import AuditFile
from flexserve.normal.quota import Quota

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclasses.dataclass(slots=True)
class Admission:
    """What a configuration says of it. One event loop; what is changed counts for the next request.

    `hosts`: the names a Host or Origin header may carry; see envelope.Envelope. `keys`: those that
    clients have to send one of; with none, everybody who can connect is served. `origins`: those of web
    pages from elsewhere that may call the server and read its answers. `audit`: where requests are recorded.
    """

    hosts: Collection[str] = LOOPBACK_NAMES
    keys: Keys = dataclasses.field(default_factory=Keys)
    origins: Origins = dataclasses.field(default_factory=Origins)
    audit: AuditFile | None = None

    def judge(self, key: bytes, right: Right) -> tuple[Key | None, HttpError | None]:
        """Return whose `key` is, and the refusal of a request that needs `right`; None: it is let in.

        Counts a request that asks models, where the key has a bound.
        """
        if not self.keys:
            return None, None
        known = self.keys.find(key)
        if known is None:
            return None, unauthenticated()
        if not known.may(right):
            return known, forbidden(right.value)
        wait = self.keys.quota_of(known).admit() if right is Right.ASK else 0.0
        return known, rate_limited(math.ceil(wait)) if wait else None

    def quota_of(self, key: Key | None) -> Quota | None:
        """Return what a key that was let in may ask for now; None: there is no key."""
        return None if key is None else self.keys.quota_of(key)

    def become(self, other: Admission) -> None:
        """Take over what `other` says. What is left of the quotas of keys that stay is kept."""
        other.keys.go_on_from(self.keys)
        if self.audit is not None:
            self.audit.close()
        self.hosts, self.keys, self.origins, self.audit = other.hosts, other.keys, other.origins, other.audit
