"""A server whose models compute inside the machine, ended in the midst of its answers in every way."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator

import pytest

from flexserve.attacks.attempt import Verdict, attempt
from flexserve.attacks.trustzone.inside import ATTACKS_ON_SERVED
from flexserve.attacks.trustzone.inside.ends import Ended
from flexserve.attacks.trustzone.scene import CPUS, RAM_BYTES
from flexserve.emulator import trusted_app
from flexserve.testing.machines import images_of

pytestmark = [
    pytest.mark.vm,
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="to dump another process needs root"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    programs = trusted_app.built(trusted_app.default_cache())
    if programs is None:
        pytest.skip("the trusted application is not built of these sources: `make trusted-app`")
    images = images_of(RAM_BYTES, CPUS, application=programs.application)
    with Ended.set(images, tmp_path_factory.mktemp("served"), seed=secrets.randbits(32)) as server:
        yield server


@pytest.mark.parametrize("attack", ATTACKS_ON_SERVED, ids=lambda attack: attack.__name__)
def test_nothing_leaks_when_a_server_is_ended_in_mid_answer_and_it_goes_on(
    attack: Callable[[Ended], str], server: Ended
) -> None:
    made = attempt(attack, server)
    assert made.verdict is Verdict.STOPPED, f"{made.name}, seed {server.seed}: {made.detail}"
