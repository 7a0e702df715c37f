"""Models that secure worlds died of: set aside, so that their deaths cost the others nothing.

A secure world says which model computes; what it was when it died is blamed. A crash is blame enough. A
kill (SIGKILL) is not, nor is that a client was cut off from a secure world inside: it is an operator's, or
a kernel's, and nothing tells them apart but what comes after. A model that takes too much memory does so
again, and is never answered for. So kills count only while they follow each other within `KILLS_WITHIN`
without an answer of the model in between. Two of them set it aside if no other model had requests in flight;
four if others had, which may be the reason.

A model set aside is asked for nothing until the server starts again, or until `flexserve verify` has tried it
with success, which is known by its record being another one.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable

from flexserve.errors import FlexServeError, NormalWorldError
from flexserve.protocol.statuses import ModelStatus

KILLS_WITHIN = 300.0  # seconds
_ENOUGH, _ALONE, _BESIDE_OTHERS = 4, 2, 1  # how strong a suspicion is, and what a kill adds to it


class SetAsideError(NormalWorldError):
    """A secure world died of this model; it is asked for nothing for the time being."""

    default_code = "model_set_aside"


@dataclasses.dataclass(frozen=True, slots=True)
class Blamed:
    """Why a model was set aside. `trial`: the one on record then; None: nobody has looked since."""

    reason: str
    trial: int | None = None


class SetAside:
    """The models that are set aside, by name. One event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._models: dict[str, Blamed] = {}
        self._suspected: dict[str, tuple[int, float]] = {}  # how strongly, and when a kill last added to it

    @property
    def models(self) -> dict[str, Blamed]:
        """The models, each with the reason."""
        return dict(self._models)

    def crashed(self, model: str, reason: FlexServeError) -> None:
        """Record that a world ended by itself, or of a fault, while `model` computed."""
        self._models[model] = Blamed(reason.message)

    def killed(self, model: str, reason: FlexServeError, *, alone: bool) -> None:
        """Record that a world was killed while `model` computed. `alone`: only it had requests in flight."""
        now = self._clock()
        before, when = self._suspected.get(model, (0, now))
        strength = (before if now - when <= KILLS_WITHIN else 0) + (_ALONE if alone else _BESIDE_OTHERS)
        self._suspected[model] = strength, now
        if strength >= _ENOUGH:
            self._models[model] = Blamed(reason.message)

    def answered(self, models: Iterable[str]) -> None:
        """Record that requests to `models` were answered: kills before that were not their doing."""
        for model in models:
            self._suspected.pop(model, None)

    def forgive(self, statuses: Iterable[ModelStatus]) -> None:
        """Take back the models that were tried with success since this was called first for them."""
        for status in statuses:
            blamed = self._models.get(status.name)
            if blamed is None:
                continue
            if blamed.trial is None:
                self._models[status.name] = dataclasses.replace(blamed, trial=status.trial)
            elif blamed.trial != status.trial:
                del self._models[status.name]
                self._suspected.pop(status.name, None)

    def check(self, model: str) -> None:
        """Raise SetAsideError for a model that is set aside."""
        if model in self._models:
            raise error_of(model, self._models[model])


def error_of(model: str, blamed: Blamed) -> SetAsideError:
    """Return what a request for a model that is set aside is answered."""
    return SetAsideError(
        f"{model} is set aside: the secure world died of it. {blamed.reason}",
        hint=f"Try it with `flexserve verify {model}`, or start the server again.",
    )
