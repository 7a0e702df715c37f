"""Which knobs matter: Morris' method over the whole space, by SALib.

From points drawn at random one knob after the other is moved by a third of its range, and the effect on
each objective is noted. The mean of its size says how much a knob matters, anywhere; next to it stands
how much that is of the largest one. It takes (knobs + 1) simulations for each point.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flexserve.bench.tuning.knobs import KNOBS, Knob
from flexserve.bench.tuning.search import extra
from flexserve.bench.tuning.trials import OBJECTIVES, Workers, objectives

_LEVELS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Effect:
    """How much a knob matters for each objective: 1 for the knob that matters most, 0 for none."""

    knob: str
    share: dict[str, float]

    @property
    def largest(self) -> float:
        """The largest of the shares."""
        return max(self.share.values())


def effects(workers: Workers, *, points: int, seed: int, knobs: Sequence[Knob] = KNOBS) -> list[Effect]:
    """Return the effect of each knob, the one that matters most first. The same seed gives the same."""
    sampling, analysis = extra("SALib.sample.morris"), extra("SALib.analyze.morris")
    problem: dict[str, Any] = {
        "num_vars": len(knobs),
        "names": [knob.name for knob in knobs],
        "bounds": [[0.0, 1.0]] * len(knobs),
    }
    places = sampling.sample(problem, points, num_levels=_LEVELS, seed=seed)
    batch = [{knob.name: _value(knob, at) for knob, at in zip(knobs, place, strict=True)} for place in places]
    results = np.array([objectives(outcome) for outcome in workers.outcomes(batch)])
    shares: dict[str, dict[str, float]] = {knob.name: {} for knob in knobs}
    for column, objective in enumerate(OBJECTIVES):
        found = analysis.analyze(problem, places, results[:, column], num_levels=_LEVELS, seed=seed)
        sizes = np.nan_to_num(np.asarray(found["mu_star"], dtype=float))
        most = sizes.max() or 1.0
        for knob, size in zip(knobs, sizes, strict=True):
            shares[knob.name][objective] = float(size / most)
    return sorted((Effect(name, share) for name, share in shares.items()), key=lambda e: -e.largest)


def _value(knob: Knob, at: float) -> float:
    """Return the value at a place of the knob's range, 0 to 1, by its scale."""
    if knob.log:
        return math.exp(math.log(knob.low) + at * (math.log(knob.high) - math.log(knob.low)))
    value = knob.low + at * (knob.high - knob.low)
    return float(round(value)) if knob.whole else value
