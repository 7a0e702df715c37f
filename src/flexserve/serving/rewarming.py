"""Models brought back in quiet moments though no request asks for them, and undone first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from flexserve.policy.rewarm import Pause, Rewarming
from flexserve.protocol.trusted_app import ModelMemory, TrustedApp
from flexserve.units import align_up

AskSpare = Callable[[int, str], int]


class Rewarmer:
    """Brings weights back piece by piece, and records which of them no request has used yet.

    `spare` asks the normal world how many of so many bytes nobody needs, and says what for; None: nothing is
    brought back. `reasons` may be called from any thread; the rest belongs to the engine thread, or to who
    holds the memory manager's lock.
    """

    def __init__(self, app: TrustedApp, spare: AskSpare | None) -> None:
        self._app, self._spare = app, spare
        self._pause = Pause()
        self._loading = False  # what the application loads is ours
        self._tried: tuple[str, int] | None = None  # the model of the last piece, and the bytes it had then
        self._asked: dict[str, int] = {}  # bytes of each model brought back that were there before
        self._reasons: dict[str, str] = {}  # of each model that was ever brought back, the last one

    @property
    def enabled(self) -> bool:
        """Whether anything is brought back."""
        return self._spare is not None

    def bring_back(self, step: Rewarming, memory: ModelMemory, now: float) -> bool:
        """Begin to bring in what `step` lacks, as far as nobody needs the memory; return whether it began."""
        tried, self._tried = self._tried, None
        if self._spare is None or self._pause.left(now) or tried == (step.model, memory.weights):
            return False  # the last piece did not come: there is no use in asking for it at once
        spare = self._spare(align_up(step.target - memory.weights, self._app.chunk), str(step))
        if spare <= 0:
            return False
        self._tried = step.model, memory.weights
        self._reasons[step.model] = str(step)
        self._asked.setdefault(step.model, memory.weights)
        size = memory.weights + spare
        self._app.load(step.model, size if size < memory.size else None)
        self._loading = True
        return True

    def turn(self, model: str) -> None:
        """End what is being brought back: a request computes, and `model` was not brought back in vain."""
        if self._loading:
            self._app.stop_loading()
            self._loading = False
        if self._asked.pop(model, None) is not None:
            self._pause.used()

    def others_load(self) -> None:
        """Record that what the application loads now was asked for."""
        self._loading = False

    def undone(self, now: float) -> None:
        """Record that something of it was given up."""
        self._pause.undone(now)

    def unasked(self, memory: ModelMemory) -> int:
        """Return how many bytes at the end of a model's weights no request asked for."""
        return max(0, memory.weights - self._asked.get(memory.name, memory.weights))

    def reasons(self, memories: Iterable[ModelMemory]) -> Mapping[str, tuple[int, str]]:
        """Return (bytes, why) of each model that was brought back and not used yet. Any thread."""
        sizes = {it.name: self.unasked(it) for it in memories}
        return {name: (size, self._reasons[name]) for name, size in sizes.items() if size}
