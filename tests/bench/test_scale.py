"""The scale benchmark: how it names growth, and that a small run measures every row."""

from __future__ import annotations

import pytest

from flexserve.bench import scale


@pytest.mark.parametrize(
    ("costs", "named"),
    [
        ([1.0, 1.1, 1.2], "flat"),
        ([2.0, 1.0, 0.5], "flat"),
        ([1.0, 9.0, 80.0], "linear"),
        ([1.0, 30.0, 1000.0], "worse"),
        ([0.0, 0.0, 0.0], "flat"),
    ],
)
def test_growth_is_named_by_its_exponent(costs, named):
    assert scale.growth([1, 10, 100], costs) == named


@pytest.mark.engine
def test_a_small_run_measures_every_row_and_draws_it(tmp_path):
    report = scale.measure([1, 3], [1, 2], rounds=1, memory="plain", say=lambda _: None)
    assert report["rows"]["idle memory, by models"]["bytes"][0] > 0
    assert report["rows"]["request, by clients"]["numbers"] == [1, 2]
    assert all(min(row.get("wall", [1])) > 0 for row in report["rows"].values())
    assert "| ps, by models | 1 / 3 |" in scale.as_text(report)
    scale.plot(report, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").stat().st_size > 1000
