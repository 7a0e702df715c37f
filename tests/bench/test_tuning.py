"""Tuning: what the search finds, that it is the same each time, and that the dead lose nothing."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flexserve.bench.tuning import main, report, search, sensitivity
from flexserve.bench.tuning.knobs import DEFAULTS, KNOBS, Knob, Values, settings
from flexserve.bench.tuning.trials import Simulated, Workers
from flexserve.errors import CallerError
from flexserve.policy.pressure import Limits
from flexserve.simulator.host import Outcome
from flexserve.simulator.load import built_in
from flexserve.units import GIB

TWO = (
    Knob("calm", 3.0, 300.0, 30.0, "s", "moves everything"),
    Knob("hold", 0.5, 30.0, 3.0, "s", "moves nothing"),
)
OPTIMUM = 120.0  # seconds of calm


@dataclasses.dataclass(frozen=True)
class Planted:
    """Every objective is least at one value of `calm`, and depends on nothing else."""

    def __call__(self, values: Values) -> Outcome:
        away = abs(math.log(values["calm"] / OPTIMUM))
        return Outcome(1 + away, 1 + away, 1 + away, held=0.0, requests=1, hours=1.0)


@dataclasses.dataclass(frozen=True)
class DyingOnce:
    """As Planted; but the third one to be asked for is killed in the middle."""

    folder: Path

    def __call__(self, values: Values) -> Outcome:
        (self.folder / f"asked-{len(list(self.folder.iterdir()))}-{os.getpid()}").touch()
        grave = self.folder / "grave"
        if len(list(self.folder.iterdir())) >= 3 and not grave.exists():
            grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Planted()(values)


@dataclasses.dataclass(frozen=True)
class Slow:
    """As Planted, in a while."""

    def __call__(self, values: Values) -> Outcome:
        time.sleep(0.2)
        return Planted()(values)


def silent(_hours: float, _speed: float) -> None:
    pass


def found(judge, journal: Path, *, trials=40, seed=1, count=1, progress=silent):
    with Workers(judge, count, progress) as workers:
        return search.search(workers, trials=trials, seed=seed, journal=journal, knobs=TWO)


def as_values(trials):
    return [(trial.number, trial.values, trial.objectives) for trial in trials]


def test_a_planted_optimum_is_found_and_the_defaults_are_the_first_trial(tmp_path):
    trials = found(Planted(), tmp_path / "journal", trials=64)
    assert trials[0].values == {"calm": DEFAULTS["calm"], "hold": DEFAULTS["hold"]}
    best = search.best(trials)
    assert best is not None
    assert best.values["calm"] == pytest.approx(OPTIMUM, rel=0.25)


def test_the_same_seed_gives_the_same_trials_by_however_many_workers(tmp_path):
    one = found(Planted(), tmp_path / "one", trials=20)
    two = found(Planted(), tmp_path / "two", trials=20, count=2)
    other = found(Planted(), tmp_path / "other", trials=20, seed=2)
    assert as_values(one) == as_values(two) != as_values(other)


def test_a_worker_that_is_killed_loses_nothing(tmp_path):
    folder = tmp_path / "asked"
    folder.mkdir()
    trials = found(DyingOnce(folder), tmp_path / "journal", trials=10, count=2)
    assert (folder / "grave").exists()
    assert as_values(trials) == as_values(found(Planted(), tmp_path / "other", trials=10))


def test_a_search_that_is_killed_goes_on_from_its_journal_as_if_it_had_not_been(tmp_path):
    class Killed(Exception):
        pass

    def killing(hours, _speed):
        if hours >= 11:
            raise Killed

    with pytest.raises(Killed):
        found(Planted(), tmp_path / "journal", trials=20, progress=killing)
    asked = []
    resumed = found(Planted(), tmp_path / "journal", trials=20, progress=lambda hours, _: asked.append(hours))
    assert as_values(resumed) == as_values(found(Planted(), tmp_path / "whole", trials=20))
    assert len(asked) <= 12, "what was finished is not simulated again"


def test_workers_end_when_the_search_is_killed(tmp_path):
    code = (
        "import sys, test_tuning as t; from pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    t.found(t.Slow(), Path(sys.argv[1]), count=2, "
        "progress=lambda *_: print('begun', flush=True))"
    )
    script = tmp_path / "search.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(script), str(tmp_path / "journal")]
    searching = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert searching.stdout is not None
    assert searching.stdout.readline() == b"begun\n"
    searching.kill()
    searching.wait()
    assert searching.stdout.read() is not None, "whoever is left holds our pipe open, and this waits for ever"
    searching.stdout.close()


def test_a_journal_of_another_search_is_refused_and_so_is_what_is_no_journal(tmp_path):
    found(Planted(), tmp_path / "journal", trials=2, seed=1)
    with pytest.raises(CallerError, match="another search"):
        found(Planted(), tmp_path / "journal", trials=2, seed=2)
    with pytest.raises(CallerError, match="cannot be written"):
        found(Planted(), tmp_path / "no folder" / "journal", trials=2)


def test_the_knob_that_moves_everything_matters_and_the_one_that_moves_nothing_does_not():
    with Workers(Planted(), 1, silent) as workers:
        effects = sensitivity.effects(workers, points=4, seed=0, knobs=TWO)
    assert [effect.knob for effect in effects] == ["calm", "hold"]
    assert [effect.largest for effect in effects] == [1.0, 0.0]


def test_the_defaults_are_those_of_the_product():
    for memory in (4 * GIB, 16 * GIB, 256 * GIB):
        product, ours = Limits.for_machine(memory), settings(DEFAULTS, memory).limits
        for field in dataclasses.fields(Limits):
            mine, theirs = getattr(ours, field.name), getattr(product, field.name)
            assert mine == pytest.approx(theirs, rel=1e-6), field.name


def test_every_corner_of_the_space_is_a_setting_that_the_policy_takes():
    for corner in ("low", "high"):
        values = {knob.name: getattr(knob, corner) for knob in KNOBS}
        assert settings(values, 8 * GIB).limits.high > 0


def test_without_the_extra_the_command_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(CallerError) as caught:
        found(Planted(), tmp_path / "journal")
    assert caught.value.code == "extra_missing"
    assert "flexserve[tune]" in caught.value.hint


def test_a_short_search_on_the_real_policy_ends_in_a_report_that_people_can_read(tmp_path):
    plan = main.Plan(trials=2, points=0, checks=1, hours=0.1, seed=0, workers=1, journal=tmp_path / "journal")
    said = main.run(plan, lambda _: None, silent)
    assert [trial["number"] for trial in said["trials"]] == [0, 1]
    assert "defaults" in report.as_text(said)
    report.plot(said | {"effects": []}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_simulated_outcomes_depend_on_settings_and_loads_alone():
    judge = Simulated(tuple(built_in(0.2, 3)))
    assert judge(DEFAULTS) == judge(dict(DEFAULTS))
