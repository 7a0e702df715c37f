"""What is worth keeping for the requests to come, by what requests told so far. Pure: time is passed in.

The paper's rules are in flexserve.policy.eviction and rearrange; this keeps what they go by: the log of
invocations, which model follows which, and the speeds that were measured. Times in seconds, sizes in
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flexserve.policy.eviction import InvocationLog, Profile, Speeds, victims
from flexserve.policy.rearrange import Rearrangement, rearrangement
from flexserve.policy.transitions import Transitions
from flexserve.units import MIB

_EXPECTED_RATE = 1.0  # requests per second that a model counts for while it is expected next
_EXPECTED_FOR = 60.0  # seconds that the expectation lasts
_RESTORE_SPEED, _PREFILL_SPEED = 250e6, 50.0  # bytes and tokens per second, until they are measured
_TELLING_BYTES, _TELLING_TOKENS = 32 * MIB, 16  # fewer say nothing about speed
_LATEST = 0.3  # weight of the latest measurement


class EvictionPolicy:
    """Follows the requests of one server. `chunk`: bytes that come and go at once. Not thread-safe."""

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        self._log = InvocationLog()
        self._transitions = Transitions()
        self._expected: tuple[str, float] = ("", float("-inf"))  # the next model, and until when
        self._restore_speed = _RESTORE_SPEED
        self._prefill_speeds: dict[str, float] = {}

    # ---- what requests tell -----------------------------------------------------------------------

    def invoked(self, model: str, prompt: int, hint: str | None, now: float) -> str | None:
        """Record a request with `prompt` tokens to compute; return the other model that is expected next.

        `hint`: the model that its sender asks next.
        """
        self._log.note(model, prompt, now)
        self._transitions.note(model, now)
        following = hint or self._transitions.expected(model)
        if following is None or following == model:
            return None
        self._expected = following, now + _EXPECTED_FOR
        return following

    def computed(self, model: str, tokens: int, seconds: float) -> None:
        """Learn from a prompt of which `tokens` were computed in `seconds`."""
        if tokens >= _TELLING_TOKENS and seconds > 0:
            speed, old = tokens / seconds, self._prefill_speeds.get(model)
            self._prefill_speeds[model] = speed if old is None else _LATEST * speed + (1 - _LATEST) * old

    def restored(self, size: int, waited: float, computed: float) -> None:
        """Learn from a restore that a request waited for, and computed its prompt beside (seconds)."""
        if size >= _TELLING_BYTES and waited > 0:
            # Loading goes on while the prompt computes, so this is a little too high; never too low.
            speed = size / (waited + computed)
            self._restore_speed = _LATEST * speed + (1 - _LATEST) * self._restore_speed

    # ---- what follows from it -----------------------------------------------------------------------

    def restore_seconds(self, size: int) -> float:
        """Return how long bringing `size` bytes of weights in takes."""
        return size / self._restore_speed

    def victims(
        self, resident: Mapping[str, int], size: int, profiles: Sequence[Profile]
    ) -> Sequence[tuple[str, int]]:
        """Return what to take off whose tail so that `size` bytes come free at the least loss."""
        return victims(profiles, resident, size, chunk=self._chunk)

    def rearrangement(self, profiles: Sequence[Profile], resident: Mapping[str, int]) -> Rearrangement | None:
        """Return the next step towards the best use of what is resident; None: it is there."""
        return rearrangement(profiles, resident, chunk=self._chunk)

    def profile(self, model: str, size: int, now: float, *, pinned: bool) -> Profile:
        """Return what is known of a model with `size` bytes of weights."""
        rate, share = self._log.rate(model, now), self._log.share(model, now)
        expected, until = self._expected
        if model == expected and now < until:
            rate, share = max(rate, _EXPECTED_RATE), 1.0
        speeds = Speeds(self._restore_speed, self._prefill_speeds.get(model, _PREFILL_SPEED))
        return Profile(model, size, rate, share, self._log.usual_prompt(model, now), speeds, pinned)
