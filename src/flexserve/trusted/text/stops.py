"""Stop strings in streamed text: nothing that could still become a stop string is let out."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Feeds text through; cuts it before the first stop string, across piece boundaries."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: int | None = None  # which of them ended the text

    @property
    def stopped(self) -> bool:
        """Whether one of them came."""
        return self.found is not None

    def feed(self, text: str) -> str:
        """Take `text` in and return what may be shown now. After a stop: always ""."""
        if self.stopped:
            return ""
        self._held += text
        # Of several stops the one that was complete first, wherever the pieces happened to be cut.
        found = [
            (at + len(stop), at, number)
            for number, stop in enumerate(self._stops)
            if stop and (at := self._held.find(stop)) >= 0
        ]
        if found:
            _, at, self.found = min(found)
            shown, self._held = self._held[:at], ""
            return shown
        keep = self._undecided()
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """Return what was held back; no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _undecided(self) -> int:
        """Return the length of the longest tail that is a proper beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
