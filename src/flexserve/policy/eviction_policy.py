"""What is worth keeping for the requests to come, by what requests told so far. Pure: time is passed in.

The paper's rules are in flexserve.policy.eviction and rearrange; this keeps what they go by: the log of
invocations, which model follows which, and the speeds that were measured. Times in seconds, sizes in
bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from flexserve.policy.eviction import InvocationLog, Profile, Speeds, losses
from flexserve.policy.ranking import Conversation, cheapest
from flexserve.policy.rearrange import Rearrangement, rearrangement
from flexserve.policy.recall import Part
from flexserve.policy.rewarm import Candidate, Rewarming, rewarming
from flexserve.policy.transitions import Transitions
from flexserve.protocol.trusted_app import IdleKv
from flexserve.units import MIB

_EXPECTED_RATE = 1.0  # requests per second that a model counts for while it is expected next
_EXPECTED_FOR = 60.0  # seconds that the expectation lasts
_RESTORE_SPEED, _PREFILL_SPEED = 250e6, 50.0  # bytes and tokens per second, until they are measured
_TELLING_BYTES, _TELLING_TOKENS = 32 * MIB, 16  # fewer say nothing about speed
_LATEST = 0.3  # weight of the latest measurement
_LATEST_CONTINUED = (
    0.05  # weight of the latest request in the part that continue a conversation: the last twenty
)


class EvictionPolicy:
    """Follows the requests of one server. `chunk`: bytes that come and go at once. Not thread-safe.

    Chosen are the models with a share of the requests of at least `threshold`; when none has that, the
    `top` ones. Requests of the last `window` seconds count.
    """

    def __init__(self, chunk: int, *, threshold: float = 0.25, top: int = 3, window: float = 3600.0) -> None:
        self._chunk = chunk
        self._threshold, self._top = threshold, top
        self._log = InvocationLog(window)
        self._transitions = Transitions()
        self._expected: tuple[str, float] = ("", float("-inf"))  # the next model, and until when
        self._restore_speed = _RESTORE_SPEED
        self._prefill_speeds: dict[str, float] = {}
        self._resume_speeds: dict[str, float] = {}  # tokens per second, from sealed copies
        self._resumed = (0, 0.0)  # tokens and seconds that they were measured with
        self._continued = 0.5  # part of the requests that continue a conversation

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
            _learn(self._prefill_speeds, model, tokens / seconds)

    def restored(self, size: int, waited: float, computed: float) -> None:
        """Learn from a restore that a request waited for, and computed its prompt beside (seconds)."""
        if size >= _TELLING_BYTES and waited > 0:
            # Loading goes on while the prompt computes, so this is a little too high; never too low.
            speed = size / (waited + computed)
            self._restore_speed = _LATEST * speed + (1 - _LATEST) * self._restore_speed

    def continued(self, *, one: bool) -> None:
        """Learn from a request whether it continued a conversation."""
        self._continued += _LATEST_CONTINUED * (one - self._continued)

    def resumed(self, model: str, tokens: int, seconds: float) -> None:
        """Learn from what sealed copies brought: `tokens` in `seconds` since the start, last for `model`."""
        tokens_since, seconds_since = tokens - self._resumed[0], seconds - self._resumed[1]
        if tokens_since > 0 and seconds_since > 0:
            _learn(self._resume_speeds, model, tokens_since / seconds_since)
            self._resumed = tokens, seconds

    # ---- what follows from it -----------------------------------------------------------------------

    def restore_seconds(self, size: int) -> float:
        """Return how long bringing `size` bytes of weights in takes."""
        return size / self._restore_speed

    def victims(
        self,
        resident: Mapping[Part, int],
        size: int,
        profiles: Sequence[Profile],
        conversations: Sequence[Conversation],
    ) -> Sequence[tuple[Part, int]]:
        """Return which of `resident` to give up so that `size` bytes come free at the least loss."""
        weights = {model: held for (model, sequence), held in resident.items() if sequence is None}
        idle = [
            dataclasses.replace(each, size=resident[each.model, each.sequence])
            for each in conversations
            if (each.model, each.sequence) in resident
        ]
        tails = losses(profiles, weights, chunk=self._chunk)
        return cheapest(tails, idle, size, chunk=self._chunk)

    def conversations(self, idle: Iterable[IdleKv], now: float) -> list[Conversation]:
        """Return what idle KV is worth, the one used longest ago first.

        A measured part of a model's requests continue a conversation. Which one they continue is taken to be
        the likelier the shorter ago it was used: as one over the seconds since then.
        """
        ordered = sorted(idle, key=lambda kv: (kv.last_used, kv.model, kv.sequence))
        weights = [1 / (1 + max(0.0, now - kv.last_used)) for kv in ordered]
        totals: dict[str, float] = {}
        for kv, weight in zip(ordered, weights, strict=True):
            totals[kv.model] = totals.get(kv.model, 0.0) + weight
        return [
            Conversation(
                *(kv.model, kv.sequence, kv.size),
                rate=self._rate(kv.model, now) * self._continued * weight / totals[kv.model],
                seconds=self._seconds_without(kv),
            )
            for kv, weight in zip(ordered, weights, strict=True)
        ]

    def _seconds_without(self, kv: IdleKv) -> float:
        """Return how long it takes to have the KV of a conversation again."""
        if not kv.sealed:
            return kv.tokens / self._prefill_speeds.get(kv.model, _PREFILL_SPEED)
        speed = self._resume_speeds.get(kv.model)
        # As long as nothing else is known, it is read and decrypted as fast as weights are.
        return kv.size / self._restore_speed if speed is None else kv.tokens / speed

    def rearrangement(self, profiles: Sequence[Profile], resident: Mapping[str, int]) -> Rearrangement | None:
        """Return the next step towards the best use of what is resident; None: it is there."""
        return rearrangement(profiles, resident, chunk=self._chunk, threshold=self._threshold, top=self._top)

    def rewarming(self, candidates: Sequence[Candidate]) -> Rewarming | None:
        """Return what to bring back though no request asks for it; None: everything chosen is there."""
        return rewarming(candidates, threshold=self._threshold, top=self._top)

    def expects(self, model: str, now: float) -> bool:
        """Return whether `model` is expected next."""
        expected, until = self._expected
        return model == expected and now < until

    def profile(self, model: str, size: int, now: float, *, pinned: bool) -> Profile:
        """Return what is known of a model with `size` bytes of weights."""
        rate = self._rate(model, now)
        share = 1.0 if self.expects(model, now) else self._log.share(model, now)
        speeds = Speeds(self._restore_speed, self._prefill_speeds.get(model, _PREFILL_SPEED))
        return Profile(model, size, rate, share, self._log.usual_prompt(model, now), speeds, pinned)

    def _rate(self, model: str, now: float) -> float:
        rate = self._log.rate(model, now)
        return max(rate, _EXPECTED_RATE) if self.expects(model, now) else rate


def _learn(speeds: dict[str, float], model: str, speed: float) -> None:
    old = speeds.get(model)
    speeds[model] = speed if old is None else _LATEST * speed + (1 - _LATEST) * old
