"""Whether other programs lack memory for their files, by what they read back. Pure: time is passed in.

The theory is that of flexserve.policy.pressure, section "The foreground".
"""

from __future__ import annotations

from typing import Protocol

_SHORTEST_SPAN = 0.1  # seconds; a rate over less time than that is noise …
_LONGEST_SPAN = 5.0  # … and one over more says nothing about now
_OWN_READS = 2.0  # seconds within which the secure world reads what belongs into granted memory
_MAX_DOUBLINGS = 6


class Sample(Protocol):
    """What is read of a look at memory (flexserve.platforms.ports.MemorySample has it)."""

    @property
    def free(self) -> int | None:
        """Bytes nobody uses, not even as cache; None where the OS does not tell."""

    @property
    def refaulted(self) -> int | None:
        """Bytes read back soon after the OS dropped them, since some moment; None if it does not tell."""


class Foreground:
    """Follows the refaults of others from look to look. Sizes in bytes, times in seconds.

    `full`: with less free the OS drops files. `cushion`: what is kept free ahead of those who lack
    memory. `threshold`: bytes a second read back that are a sign of lack. `calm`: how long a sign
    counts, at first; `longest_calm`: at most.
    """

    def __init__(self, *, full: int, cushion: int, threshold: int, calm: float, longest_calm: float) -> None:
        self._full, self._cushion, self._threshold = full, cushion, threshold
        self._shortest_calm, self._longest_calm = calm, longest_calm
        self._calm = calm
        self._last: tuple[float, int] | None = None  # when was looked, and `refaulted` then
        self._own = 0  # bytes that the secure world may be reading back itself …
        self._own_until = float("-inf")  # … until then
        self._short = False
        self._doublings = 0
        self._told_at = float("-inf")  # when the last rate was told
        self.rate = 0.0  # bytes a second that others read back, at the last look that told
        self.calm_at = float("-inf")  # when the last sign has ceased to count

    def look(self, sample: Sample, *, now: float) -> None:
        """Record a sample."""
        if sample.refaulted is None or sample.free is None:
            return
        if self._last is None or not 0 <= now - self._last[0] <= _LONGEST_SPAN:
            self._last, self._short = (now, sample.refaulted), False
            return
        span = now - self._last[0]
        if span < _SHORTEST_SPAN:
            return
        self.rate = self._others(sample.refaulted - self._last[1], now) / span
        self._last, self._told_at = (now, sample.refaulted), now
        line = self._cushion if now < self.calm_at else self._full
        self._short = self.rate >= self._threshold and sample.free < line
        if self._short:
            self._note_sign(now)

    def is_quiet(self, now: float) -> bool:
        """Return whether others are known to read nothing back, and have not for as long as a sign counts.

        False where nothing is known: the OS does not tell, or nobody looked twice within a few seconds.
        """
        known = now - self._told_at <= _LONGEST_SPAN
        return known and self.rate < self._threshold and now >= self.calm_at

    def expect(self, size: int, *, now: float) -> None:
        """Expect the secure world to read `size` bytes that were just granted to it."""
        if size:
            self._own = size + (self._own if now < self._own_until else 0)
            self._own_until = now + _OWN_READS

    def wanted(self, sample: Sample) -> int:
        """Return the bytes that others lack now; asked again in the same pressure episode, twice as many."""
        if not self._short or sample.free is None:
            return 0
        wanted = max(0, (self._cushion << self._doublings) - sample.free)
        self._doublings = min(self._doublings + 1, _MAX_DOUBLINGS)
        return wanted

    def _others(self, refaulted: int, now: float) -> int:
        """Return the bytes of `refaulted` that the secure world did not read itself."""
        refaulted = max(0, refaulted)
        own = min(refaulted, self._own if now < self._own_until else 0)
        self._own -= own
        return refaulted - own

    def _note_sign(self, now: float) -> None:
        if now >= self.calm_at:  # a new episode; soon after the last one, the calm between was too short
            soon = now < self.calm_at + self._longest_calm
            self._calm = min(2 * self._calm, self._longest_calm) if soon else self._shortest_calm
            self._doublings = 0
        self.calm_at = now + self._calm
