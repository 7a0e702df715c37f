"""The law: an attack on a secure world inside succeeds where its protection is absent: a mutant or a control.

The mutants are made by `inside_mutants.py`, a minute for each; here it is only seen that no attack lacks one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mutants_of_data
import mutants_of_worlds
import test_inside_attacks

from flexserve.attacks.trustzone import inside
from flexserve.attacks.trustzone.inside.exposure import dump_a_server

ATTACKS: tuple[Callable[[Any], str], ...] = (
    *(*inside.ATTACKS_BEFORE, *inside.ATTACKS_ON_PAGES, *inside.ATTACKS, *inside.ATTACKS_LAST),
    *(*inside.ATTACKS_ON_DRIVEN, *inside.ATTACKS_ON_SERVED, dump_a_server),
)

#: What shows that it can succeed, where no mutant does.
CONTROLS: dict[str, Callable[..., Any]] = {
    **{
        attack.__name__: test_inside_attacks.test_the_attack_succeeds_where_nothing_protects
        for attack in test_inside_attacks.ON_WHAT_NOTHING_PROTECTS
    },
    # It is not shown unless it finds the words of an unsealed request in the same places.
    "dump_everything": (
        test_inside_attacks.test_nothing_leaks_when_the_driver_is_dumped_and_killed_and_the_machine_reset_and_cut_off
    ),
    "dump_a_server": (
        test_inside_attacks.test_where_models_compute_in_a_process_of_the_host_all_of_it_is_found_there
    ),
}


def test_each_attack_can_succeed() -> None:
    attacks = {attack.__name__ for attack in ATTACKS}
    mutants = (*mutants_of_worlds.MUTANTS, *mutants_of_data.MUTANTS)
    shown = {mutant.attack.__name__ for mutant in mutants} | CONTROLS.keys()
    assert shown == attacks
