"""Models that secure worlds died of: set aside, so that their deaths cost the others nothing.

A secure world says which model computes; what it was when it died is blamed. A crash is blame
enough. A kill may be somebody else's doing (the kernel's, for want of memory), so it takes two of the
same model within `KILLS_WITHIN`. A model set aside is asked for nothing until the server starts again,
or until `flexserve verify` has tried it with success, which is known by its record being another one.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable

from flexserve.errors import FlexServeError, NormalWorldError
from flexserve.protocol.statuses import ModelStatus

KILLS_WITHIN = 300.0  # seconds


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
        self._killed: dict[str, float] = {}  # when a world was last killed while it computed

    @property
    def models(self) -> dict[str, Blamed]:
        """The models, each with the reason."""
        return dict(self._models)

    def blame(self, model: str, reason: FlexServeError, *, killed: bool) -> None:
        """Record that a world died while `model` computed. `killed`: by a signal from outside."""
        now = self._clock()
        if killed and now - self._killed.get(model, float("-inf")) > KILLS_WITHIN:
            self._killed[model] = now
            return
        self._models[model] = Blamed(reason.message)

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
                self._killed.pop(status.name, None)

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
