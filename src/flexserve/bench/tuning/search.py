"""The search for better settings: Optuna proposes, workers simulate, a journal on disk keeps everything.

Settings are proposed in batches of one size, whatever the number of workers, and each batch from the
results of all before it and a seed of its own. So the same seed gives the same trials, by however many
workers, and also when the search was killed and goes on from its journal: what is finished stays, and
what was proposed and not finished is simulated again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flexserve.bench.tuning.knobs import DEFAULTS, KNOBS, Knob
from flexserve.bench.tuning.trials import OBJECTIVES, Workers, objectives
from flexserve.errors import CallerError, StoredDataError
from flexserve.simulator.host import Outcome

_BATCH = 8  # settings proposed from the same results
_STUDY = "flexserve"


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """Settings and what came of them. Number 0 has today's defaults."""

    number: int
    values: dict[str, float]
    outcome: Outcome

    @property
    def objectives(self) -> tuple[float, ...]:
        """What is to be made least."""
        return objectives(self.outcome)


def extra(name: str) -> Any:
    """Return the module `name` of the extra `tune`. Raises CallerError where it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise CallerError(
            f"Tuning needs {name.split('.', maxsplit=1)[0]}, which is not installed here.",
            hint="Install it with `pip install 'flexserve[tune]'`.",
            code="extra_missing",
        ) from None


def search(
    workers: Workers, *, trials: int, seed: int, journal: Path, knobs: Sequence[Knob] = KNOBS, about: str = ""
) -> list[Trial]:
    """Return `trials` trials, those in `journal` included, and have them in it.

    `about` says what was searched for. Raises CallerError when the journal is of another search, and
    StoredDataError when it cannot be read.
    """
    optuna = extra("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _quietly(optuna):
        study = _opened(optuna, journal, f"seed {seed}, {about}")
        space = {knob.name: _distribution(optuna, knob) for knob in knobs}
        if not study.trials:
            study.enqueue_trial({knob.name: DEFAULTS.get(knob.name, knob.default) for knob in knobs})
        while (count := len(_of(study, "COMPLETE"))) < trials:
            begun = _of(study, "RUNNING")
            if not begun:  # else it was killed before these were simulated
                study.sampler = _sampler(optuna, seed, len(study.trials))
                for _ in range(min(_BATCH, trials - count)):
                    study.ask(space)
                begun = _of(study, "RUNNING")
            for trial, outcome in zip(
                begun, workers.outcomes([trial.params for trial in begun]), strict=True
            ):
                study._storage.set_trial_user_attr(trial._trial_id, "outcome", dataclasses.asdict(outcome))
                study.tell(trial.number, list(objectives(outcome)))
        found = _of(study, "COMPLETE")
    return [Trial(each.number, each.params, Outcome(**each.user_attrs["outcome"])) for each in found]


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Return those that no other trial is at least as good as in every objective, and better in one."""
    return [trial for trial in trials if not any(_beats(other, trial) for other in trials)]


def best(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial that gains most on the defaults (number 0) and is not worse in anything.

    Gain is the product of what is left of each objective. None: no trial is better.
    """
    default = next(trial for trial in trials if trial.number == 0)
    better = [trial for trial in trials if _beats(trial, default)]
    return min(better, key=lambda trial: _left(trial, default), default=None)


def _left(trial: Trial, default: Trial) -> float:
    left = 1.0
    for mine, theirs in zip(trial.objectives, default.objectives, strict=True):
        left *= mine / theirs if theirs else 1.0
    return left


def _beats(trial: Trial, other: Trial) -> bool:
    pairs = list(zip(trial.objectives, other.objectives, strict=True))
    return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)


# ---- Optuna


@contextlib.contextmanager
def _quietly(optuna: Any) -> Iterator[None]:
    """Silence what Optuna calls experimental: its version is pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _opened(optuna: Any, journal: Path, about: str) -> Any:
    """Return the study in `journal`, a new one if there is none."""
    backends = extra("optuna.storages.journal")
    lock = backends.JournalFileOpenLock(str(journal))
    try:
        storage = optuna.storages.JournalStorage(backends.JournalFileBackend(str(journal), lock_obj=lock))
        study = optuna.create_study(
            study_name=_STUDY, storage=storage, directions=["minimize"] * len(OBJECTIVES), load_if_exists=True
        )
    except OSError as error:
        raise CallerError(
            f"{journal} cannot be written: {error.strerror}.", hint="Choose another place."
        ) from None
    except (ValueError, KeyError):
        raise StoredDataError(
            f"{journal} is not the journal of a search.", hint="Name another file."
        ) from None
    known = study.user_attrs.get("about")
    if known is None:
        study.set_user_attr("about", about)
    elif known != about:
        raise CallerError(
            f"{journal} is of another search ({known}).",
            hint="Name another file, or search for the same.",
            code="journal_of_another_search",
        )
    return study


def _sampler(optuna: Any, seed: int, number: int) -> Any:
    """Return what proposes the batch that begins with trial `number`."""
    return optuna.samplers.TPESampler(
        seed=seed * 1_000_003 + number, multivariate=True, constant_liar=True, n_startup_trials=24
    )


def _distribution(optuna: Any, knob: Knob) -> Any:
    if knob.whole:
        return optuna.distributions.IntDistribution(int(knob.low), int(knob.high))
    return optuna.distributions.FloatDistribution(knob.low, knob.high, log=knob.log)


def _of(study: Any, state: str) -> list[Any]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == state]
