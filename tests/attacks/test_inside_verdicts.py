"""Attacks on a secure world inside that cannot be made: they are not shown, and the next one is made."""

from __future__ import annotations

from typing import cast

import pytest

from flexserve.attacks.attempt import Verdict, attempt
from flexserve.attacks.trustzone import inside
from flexserve.attacks.trustzone.inside.scene import Inside
from flexserve.harness.inner import NotDone
from flexserve.tee_client.messages import Ask, Reply, Status


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (NotDone(Ask.LOAD, Reply(Status.REFUSED, (1, 0, 0, 0), b"")), "LOAD"),
        (PermissionError(1, "Operation not permitted"), "run it as root"),
    ],
    ids=["by the application", "by the host"],
)
def test_an_attack_that_is_refused_what_it_needs_is_not_shown(refusal: Exception, said: str) -> None:
    def take(_scene: Inside) -> str:
        """Take what is not given."""
        raise refusal

    made = attempt(inside.possible(take), cast(Inside, object()))
    assert (made.name, made.aim, made.verdict) == ("take", "Take what is not given", Verdict.NOT_RUN)
    assert said in made.detail
