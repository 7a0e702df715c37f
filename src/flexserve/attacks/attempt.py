"""One attack: what it wants, what came of it, what stopped it."""

from __future__ import annotations

import dataclasses
import enum


class Verdict(enum.Enum):
    """What came of an attack."""

    STOPPED = "stopped"
    SUCCEEDED = "SUCCEEDED"  # the attacker got what it wanted: the protection is broken
    NOT_RUN = "not run"  # it could not be made, or would prove nothing here


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    """An attack that was made, or the reason why it was not."""

    name: str
    aim: str  # what the attacker wants, in a few words
    verdict: Verdict
    detail: str  # what stopped it; what was gained; why it was not run


class Gained(Exception):  # noqa: N818  # an outcome, not an error
    """The attack succeeded; the text says what the attacker has."""


class Pointless(Exception):  # noqa: N818
    """The attack cannot be made here, or fails on its unprotected control, too; the text says why."""
