"""What sealing costs, as it is counted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flexserve.bench.sealed import Sample, cpu_of, percentile, table


def test_a_percentile_is_one_of_the_values():
    values = [float(number) for number in range(100, 0, -1)]
    assert (percentile(values, 50), percentile(values, 99), percentile([7.0], 99)) == (51, 100, 7)


def test_the_table_says_what_sealing_adds():
    direct, sealed = [Sample(0.1, 1.0, 50.0, 0.1)] * 3, [Sample(0.102, 1.1, 49.0, 0.125)] * 3
    shown = table(direct, sealed)
    assert "| first token, p50, ms | 100.00 | 102.00 | +2.00 |" in shown
    assert "ratio 0.980" in shown
    assert "| CPU time an answer, mean, ms | 100.00 | 125.00 | +25.00 |" in shown


def test_the_cpu_time_of_a_program_counts_what_it_started():
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        assert cpu_of([os.getpid()]) - cpu_of([]) >= cpu_of([child.pid]) >= 0.2
        child.communicate(b"\n")


def test_a_program_that_ended_costs_nothing():
    assert cpu_of([1 << 30]) == pytest.approx(0)
