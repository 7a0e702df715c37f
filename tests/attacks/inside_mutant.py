"""A mutant: sources of the machine with one guard less, and the attack that must succeed against it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from flexserve.attacks.trustzone.inside.ends import Ended
from flexserve.attacks.trustzone.inside.restarts import Driven
from flexserve.attacks.trustzone.inside.scene import Inside

Changes = dict[str, tuple[str, ...]]  # by file, what is replaced and by what; in turns, where it is several


@dataclasses.dataclass(frozen=True, slots=True)
class Mutant:
    """Sources with one guard less."""

    name: str
    changes: Changes
    attack: Callable[[Inside], str] | Callable[[Driven], str] | Callable[[Ended], str]
