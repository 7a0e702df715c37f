"""Many clients at once while memory is taken back all the time, and while the secure world dies."""

import pytest
from library import has_secret_memory

from flexserve.bench.endurance import Plan, run

pytestmark = pytest.mark.engine

MEMORY = "secret" if has_secret_memory() else "plain"


def test_no_client_hears_a_wrong_word_while_memory_comes_and_goes():
    report = run(Plan(seconds=5, clients=12, kill=None, memory=MEMORY))
    assert report["good"], report
    assert report["recalls"] > 5


def test_a_dying_secure_world_fails_requests_and_corrupts_none():
    report = run(Plan(seconds=8, clients=6, kill=2, memory=MEMORY))
    assert report["good"], report
    assert report["kills"] >= 1
