"""What can be tuned, within which bounds, and what today's defaults are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flexserve.policy.pressure import Limits
from flexserve.simulator.host import Settings
from flexserve.simulator.residence import Choice
from flexserve.units import GIB, MIB

Values = Mapping[str, float]  # of all knobs, by name


@dataclasses.dataclass(frozen=True, slots=True)
class Knob:
    """One number that the policy goes by. On a `log` scale each doubling counts alike."""

    name: str
    low: float
    high: float
    default: float
    unit: str
    meaning: str
    log: bool = True
    whole: bool = False  # a count


_DEFAULT = Limits.for_machine(GIB << 10)  # 1 TiB: far above the least of each line
_LEAST = 10 * GIB  # on a smaller host the lines are those of this one
_CHOICE = Choice()

KNOBS = (
    Knob("low", 0.01, 0.15, 0.05, "of RAM", "a recall starts when less is available"),
    Knob("high", 1.1, 3.0, _DEFAULT.high / _DEFAULT.low, "× low", "a recall brings back so much", log=False),
    Knob("emergency", 0.0, 1.0, 0.25, "× low", "no request for the last it needs goes below", log=False),
    Knob("stall", 2.0, 50.0, _DEFAULT.stall, "%", "processes that wait for memory so long are a sign"),
    Knob("cooldown", 0.25, 8.0, _DEFAULT.cooldown, "s", "between two recalls"),
    Knob("hold", 0.5, 30.0, _DEFAULT.hold, "s", "what came back stays with others"),
    Knob("calm", 3.0, 300.0, _DEFAULT.calm, "s", "a sign of pressure counts for so long"),
    Knob("longest_calm", 60.0, 3600.0, _DEFAULT.longest_calm, "s", "… at most, when it returns"),
    Knob("full", 32.0, 512.0, _DEFAULT.full / MIB, "MiB", "with less free, what others read back is a sign"),
    Knob("cushion", 32.0, 1024.0, _DEFAULT.cushion / MIB, "MiB", "kept free ahead of others that grow"),
    Knob("refault_rate", 0.05, 8.0, _DEFAULT.refault_rate / MIB, "MiB/s", "read back, this is a sign"),
    Knob("keep_alive", 15.0, 3600.0, 300.0, "s", "an idle model keeps its working memory"),
    Knob(
        "threshold", 0.05, 0.6, _CHOICE.threshold, "of requests", "a model with this share is kept", log=False
    ),
    Knob("top", 1.0, 4.0, _CHOICE.top, "models", "… are kept when none has it", log=False, whole=True),
    Knob("window", 300.0, 14400.0, _CHOICE.window, "s", "over which requests are counted"),
)

DEFAULTS: dict[str, float] = {knob.name: knob.default for knob in KNOBS}


def settings(values: Values, memory: int) -> Settings:
    """Return what `values` mean on a host with `memory` bytes of RAM."""
    low = int(max(memory, _LEAST) * values["low"])
    limits = Limits(
        low=low,
        high=max(low + 1, int(low * values["high"])),
        emergency=int(low * values["emergency"]),
        stall=values["stall"],
        cooldown=values["cooldown"],
        hold=values["hold"],
        calm=values["calm"],
        longest_calm=max(values["calm"], values["longest_calm"]),
        full=int(values["full"] * MIB),
        cushion=int(values["cushion"] * MIB),
        refault_rate=int(values["refault_rate"] * MIB),
    )
    choice = Choice(values["threshold"], round(values["top"]), values["window"])
    return Settings(limits, choice, values["keep_alive"])
