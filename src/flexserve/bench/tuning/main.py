"""`flexserve tune`: searches, says which knobs matter, and checks what was found on loads not seen before."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flexserve.bench.tuning import search, sensitivity
from flexserve.bench.tuning.knobs import DEFAULTS, KNOBS
from flexserve.bench.tuning.search import Trial
from flexserve.bench.tuning.trials import OBJECTIVES, Progress, Simulated, Workers
from flexserve.folders import cache_folder
from flexserve.simulator.host import Outcome
from flexserve.simulator.load import Load, built_in

Say = Callable[[str], None]

_UNSEEN = 1000  # seeds of the loads that the result is checked on begin so much above


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to do. `load`: a recorded one; None: the built-in ones, `hours` of each, drawn by `seed`.

    `journal`: where trials are kept; None: in a file of the cache folder that is this search's own.
    """

    trials: int
    points: int  # that sensitivities are measured from; 0: they are not
    checks: int  # sets of loads that the result is checked on, if they are built in
    hours: float
    seed: int
    workers: int
    journal: Path | None
    load: Load | None = None


def run(plan: Plan, say: Say, progress: Progress) -> dict[str, Any]:
    """Do all of it and return the report, JSON-able. The same plan gives the same, whoever was killed."""
    loads = _loads(plan, plan.seed)
    hours = sum(load.hours for load in loads)
    digest = hashlib.sha256(repr(loads).encode()).hexdigest()[:16]
    journal = plan.journal or _own_journal(f"{digest}-{plan.seed}")
    many = f"{plan.trials} trials of {round(hours, 2):g} simulated hours"
    say(f"{many}, {plan.workers} at a time; journal {journal}")
    with Workers(Simulated(loads), plan.workers, progress) as workers:
        about = f"loads {digest}"
        trials = search.search(workers, trials=plan.trials, seed=plan.seed, journal=journal, about=about)
        effects = []
        if plan.points:
            say(f"sensitivities from {plan.points} points: {plan.points * (len(KNOBS) + 1)} trials more")
            effects = sensitivity.effects(workers, points=plan.points, seed=plan.seed)
    found = search.best(trials)
    checks = []
    if found is not None and plan.load is None:
        for number in range(plan.checks):
            say(f"checking on loads not seen before, {number + 1} of {plan.checks}")
            unseen = Simulated(_loads(plan, plan.seed + _UNSEEN + number))
            with Workers(unseen, plan.workers, progress) as workers:
                checks.append(workers.outcomes([DEFAULTS, found.values]))
    return {
        "loads": [load.name for load in loads],
        "hours": hours,
        "seed": plan.seed,
        "knobs": [dataclasses.asdict(knob) for knob in KNOBS],
        "trials": [_trial(trial) for trial in trials],
        "front": [trial.number for trial in search.front(trials)],
        "best": found.number if found else None,
        "effects": [dataclasses.asdict(effect) for effect in effects],
        "checks": [[_outcome(outcome) for outcome in pair] for pair in checks],
    }


def _loads(plan: Plan, seed: int) -> tuple[Load, ...]:
    return (plan.load,) if plan.load else tuple(built_in(plan.hours, seed))


def _own_journal(name: str) -> Path:
    path = cache_folder() / "tune" / f"{name}.journal"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _trial(trial: Trial) -> dict[str, Any]:
    return {"number": trial.number, "values": trial.values, **_outcome(trial.outcome)}


def _outcome(outcome: Outcome) -> dict[str, float]:
    return {name: getattr(outcome, name) for name in (*OBJECTIVES, "held", "requests")}
