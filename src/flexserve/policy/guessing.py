"""How many tokens a smaller model is to guess before each graph of another one. Pure.

A graph that checks guesses takes in several tokens, and takes longer; each guess costs a graph of the smaller
model. It pays where enough of the guesses are right. How many are, and how long all that takes, is measured.
What is fast counts at once, and what is slow by and by: the first graph of a size is slow, and so is any one
that another program disturbed.
"""

from __future__ import annotations

MOST = 8  # guesses before one graph
_TRIAL = 3  # guesses, when nothing is known of them
_PLAIN = 2  # graphs without guesses, before the first trial
_TRIALS = 3  # before anything is decided
_PATIENCE = 64  # graphs without guesses until the next trial, when one did not pay …
_LONGEST = 4096  # … and twice as many after each further one, up to these: a trial costs some graphs
_WEIGHT = 1 / 8  # of what was measured last
_HOPE = 0.7  # the part of guesses that is right, before any was checked
_LEAST = 1e-6  # seconds: what takes no time that is measured
_MARGIN = 1.05  # so much faster has it to be


class Guessing:
    """Measures and decides for one pair of models. Times in seconds."""

    def __init__(self) -> None:
        self._right = _HOPE
        self._plain = self._guess = self._more = 0.0  # a graph; a guess; what checking one adds to a graph
        self._graphs = 0  # without guesses, since the last trial
        self._trials = 0
        self._pause = 0  # graphs for which nothing is guessed
        self._patience = _PATIENCE

    def count(self) -> int:
        """Return how many tokens to guess now; 0: none."""
        if self._pause:
            return 0
        if self._trials < _TRIALS:
            return _TRIAL if self._graphs >= _PLAIN else 0
        return self._best() or (_TRIAL if self._graphs >= self._patience else 0)

    def _best(self) -> int:
        """Return how many guesses bring most by what was measured; 0: none pay."""
        best = max(range(1, MOST + 1), key=self._rate)
        return best if self._rate(best) > _MARGIN * self._rate(0) else 0

    def _rate(self, guesses: int) -> float:
        """Return the tokens per second that so many guesses before each graph are expected to bring."""
        tokens = sum(self._right**place for place in range(guesses + 1))
        return tokens / (self._plain + guesses * (self._guess + self._more) + 1e-9)

    def computed(self, seconds: float) -> None:
        """Record a graph without guesses, for one token."""
        self._plain = _cost(self._plain, seconds)
        self._graphs += 1
        self._pause = max(0, self._pause - 1)

    def refused(self) -> None:
        """Record that there was no memory to guess with."""
        self._pause = _PATIENCE

    def checked(self, guesses: int, right: int, guessing: float, seconds: float) -> None:
        """Record that of `guesses` the first `right` were, how long guessing took, and the graph."""
        for place in range(min(right + 1, guesses)):
            self._right = _mean(self._right, float(place < right))
        self._guess = _cost(self._guess, guessing / guesses)
        self._more = _cost(self._more, max(_LEAST, seconds - self._plain) / guesses)
        self._trials += 1
        self._graphs = 0 if self._trials >= _TRIALS else _PLAIN
        if self._trials > _TRIALS:
            self._patience = _PATIENCE if self._best() else min(_LONGEST, 2 * self._patience)


def _cost(before: float, now: float) -> float:
    """Return what something costs that cost `before` (0: unknown), and `now` the last time."""
    return _mean(before, now) if 0 < before < now else now


def _mean(before: float, now: float) -> float:
    return before + _WEIGHT * (now - before)
