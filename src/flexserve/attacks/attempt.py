"""One attack: what it wants, what came of it, what stopped it."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import TypeVar

S = TypeVar("S")


class Verdict(enum.Enum):
    """What came of an attack."""

    STOPPED = "stopped"
    SUCCEEDED = "SUCCEEDED"  # the attacker got what it wanted: the protection is broken
    OPEN = "open"  # the attacker got what it wanted, as this host's label says that it would
    NOT_RUN = "not shown"  # it could not be made, or its control failed: neither of the two was shown


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    """An attack that was made, or the reason why it was not."""

    name: str
    aim: str  # what the attacker wants, in a few words
    verdict: Verdict
    detail: str  # what stopped it; what was gained; why it was not run


class Gained(Exception):  # noqa: N818  # an outcome, not an error
    """The attack succeeded; the text says what the attacker has."""


class Foreseen(Gained):
    """The attack succeeded by a vector that the label calls open here; the text says what closes it."""


class Pointless(Exception):  # noqa: N818
    """The attack cannot be made here, or fails on its unprotected control, too; the text says why."""


def attempt(attack: Callable[[S], str], scene: S) -> Attempt:
    """Make one attack. Its name and its first line say what it is; it returns what stopped it, or raises."""
    name, aim = attack.__name__.replace("_", " "), (attack.__doc__ or "").rstrip(".")
    try:
        return Attempt(name, aim, Verdict.STOPPED, attack(scene))
    except Foreseen as gain:
        return Attempt(name, aim, Verdict.OPEN, str(gain))
    except Gained as gain:
        return Attempt(name, aim, Verdict.SUCCEEDED, str(gain))
    except Pointless as reason:
        return Attempt(name, aim, Verdict.NOT_RUN, str(reason))
