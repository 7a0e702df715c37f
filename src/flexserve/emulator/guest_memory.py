"""The NormalMemory port of the emulated machine: what its kernel says of its memory, through the agent."""

from __future__ import annotations

from typing import Any, Protocol

from flexserve.errors import NormalWorldError
from flexserve.platforms.ports import MemorySample

_PATIENCE = 2.0  # seconds; an event loop may be waiting


class Asked(Protocol):
    """Who answers for the guest (platforms.trustzone.agent.Agent)."""

    def ask(self, *words: str, seconds: float) -> dict[str, Any]:
        """Return the answer to a question. Raises NormalWorldError when there is none, or a refusal."""


class GuestMemory:
    """What the guest's kernel has free, and what it handed over to the secure world."""

    def __init__(self, agent: Asked) -> None:
        self._agent = agent

    def sample(self) -> MemorySample:
        """Return the state of the guest's memory now. Raises NormalWorldError when it does not tell."""
        answer = self._ask()
        stall = answer.get("stall")
        return MemorySample(
            total=_bytes(answer, "total"),
            available=_bytes(answer, "available"),
            stall=float(stall) if isinstance(stall, int | float) else None,
            free=_bytes(answer, "free"),
        )

    def charged(self, pid: int) -> int:
        """Return the bytes that the driver handed over; the secure world is no process of the guest's."""
        del pid
        return _bytes(self._ask(), "flexmem")

    def _ask(self) -> dict[str, Any]:
        return self._agent.ask("meminfo", seconds=_PATIENCE)


def _bytes(answer: dict[str, Any], name: str) -> int:
    value = answer.get(name)
    if not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise NormalWorldError(f"The guest's agent does not tell {name}.", hint="Restart the machine.")
    return value
