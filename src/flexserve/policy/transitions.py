"""Which model is likely to be invoked after which: agent workflows call their models in patterns.

First order: what followed a model the last few times is what follows it. A wrong guess costs a
prefetch that something else may evict again, so a guess wants evidence; and only recent
evidence, so that a workflow that changed is followed after a few rounds.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque

_REMEMBERED = 8  # successors of each model
_EVIDENCE = 2  # times that a successor must have been seen …
_MAJORITY = 0.6  # … and which part of the remembered ones


class Transitions:
    """What followed each model. Remembers `limit` models, the ones invoked last. Not thread-safe."""

    def __init__(self, limit: int = 64, gap: float = 300.0) -> None:
        if limit < 1:
            raise ValueError("room for at least one model")
        self._limit = limit
        self._gap = gap  # seconds; an invocation that comes later than this after another is not caused by it
        self._followers: OrderedDict[str, deque[str]] = OrderedDict()
        self._previous, self._when = "", float("-inf")  # nothing follows what was so long ago

    def note(self, model: str, now: float) -> None:
        """Record that `model` was invoked at `now` (seconds). A clock that jumped back is no gap."""
        if now - self._when <= self._gap:
            followers = self._followers.setdefault(self._previous, deque(maxlen=_REMEMBERED))
            followers.append(model)
            self._followers.move_to_end(self._previous)
            if len(self._followers) > self._limit:
                self._followers.popitem(last=False)
        self._previous, self._when = model, now

    def expected(self, model: str) -> str | None:
        """Return the model that usually follows `model` (perhaps itself), None when none does."""
        followers = self._followers.get(model)
        if not followers:
            return None
        successor, times = Counter(followers).most_common(1)[0]
        return successor if times >= _EVIDENCE and times >= _MAJORITY * len(followers) else None
