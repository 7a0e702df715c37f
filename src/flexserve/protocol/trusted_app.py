"""The port between policy and mechanism: what the trusted application does when it is told to.

Policy (flexserve.serving) says whose turn it is, what comes into memory and what goes. The application
(flexserve.trusted) sees plaintext and carries out. What crosses this port is numbers, names, enums,
times and errors without contents: never a byte of weights, KV, prompt, answer or key. So policy can at
worst make the service slow: what it asks for at the wrong moment is refused, or does nothing.

Sizes are bytes, times are seconds; moments are of the monotonic clock.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Protocol

from flexserve.errors import FlexServeError
from flexserve.protocol.answers import Finished
from flexserve.protocol.statuses import Abilities, Description, KvStatus


class Work(enum.Enum):
    """What a request is for."""

    GENERATE = "generate"
    EMBED = "embed"
    CONVERT = "convert"  # between text and tokens: no weights, and nothing is computed
    WARM = "warm"  # bring all weights in
    TRY = "try"  # find out what the model can do


class Kind(enum.IntEnum):
    """What memory is used for, in the order in which it is given up."""

    SCRATCH = 0
    KV = 1
    WEIGHTS = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Ticket:
    """What policy learns of a request that was admitted."""

    request: int
    model: str
    work: Work
    received: float
    priority: int = 0  # higher goes first
    next_model: str | None = None  # its sender expects to ask this one next
    keep_alive: float | None = None  # how long its model is to be kept; -1: for ever, None: as usual


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """Where a generation is after a step: it goes on, has finished, or was broken off by an error."""

    request: int
    pending: int = 0  # tokens to compute before its next one can be chosen
    right: int = 0  # of the guesses that the step checked
    finished: Finished | None = None
    error: FlexServeError | None = None
    sequence: int = 0  # where its KV lies; what neighbours compute in one graph costs least
    apart: bool = False  # its prompt has to have graphs of its own


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """A model of the store. `trial` 0: nobody tried what it can do."""

    name: str
    size: int
    abilities: Abilities | None = None
    trial: int = 0
    description: Description | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ModelMemory:
    """What an open model has in memory."""

    name: str
    size: int  # of its weights when all are there
    weights: int
    whole: bool  # all of them are there
    scratch: int
    idle_kv: int  # of conversations that nobody continues at the moment
    used_kv: int
    heap: int  # ordinary memory, from its opening to its closing
    running: bool  # a request uses it: its scratch is not evicted, its weights between two slices only


@dataclasses.dataclass(frozen=True, slots=True)
class Missing:
    """Weights that a model lacks."""

    size: int
    needed: int  # of which its graphs read
    minimum: int  # of which there has to be some memory at once


@dataclasses.dataclass(frozen=True, slots=True)
class IdleKv:
    """The KV of a conversation that nobody continues at the moment."""

    model: str
    sequence: int
    size: int  # bytes granted for it
    touched: int  # about as many of them have pages: fewer where it is shorter than its context
    tokens: int
    last_used: float
    sealed: bool  # the store has a copy, or could have none
    worth_sealing: bool  # and not sealed


@dataclasses.dataclass(frozen=True, slots=True)
class Pool:
    """Secure memory by owner; `resident` is what the OS counts."""

    granted: int  # and unused
    secure: int
    recalling: int
    resident: int


class TrustedApp(Protocol):
    """What the trusted application does. One engine thread calls it, but for what says "any thread".

    Whatever needs memory that is not granted raises GrantRefusedError, with how much is missing, and
    leaves all as it was: have it granted, or evict something, and call again.
    """

    chunk: int  # memory comes and goes in multiples of this
    batch: int  # tokens that one graph takes in, at most

    # ---- models ----------------------------------------------------------------------------------

    def stored(self) -> Sequence[Stored]:
        """Return the models of the store. Any thread."""

    def is_open(self, model: str) -> bool:
        """Return whether `model` is open, as the store has it now. Raises UnknownModelError."""

    def opens_at_once(self, model: str) -> bool:
        """Return whether opening `model` takes no more than a moment. Raises UnknownModelError."""

    def open(self, model: str) -> None:
        """Open `model`; it holds no memory then. Raises what a bad or absent file raises."""

    def close(self, model: str, seal_until: float) -> None:
        """Close `model`, having sealed its KV as far as the moment `seal_until` allows. Not while it runs."""

    # ---- requests --------------------------------------------------------------------------------

    def require(self, request: int) -> None:
        """Raise CallerError when the model of a request was found not to be able to do it."""

    def is_prepared(self, request: int) -> bool:
        """Return whether a generation or a conversion can begin: what its text is made of is known."""

    def prepare(self, request: int, done: Callable[[FlexServeError | None], None]) -> None:
        """Prepare a generation or a conversion in another thread, which calls `done`.

        Its model stays open until then.
        """

    def plaintext(self, request: int) -> int:
        """Return the bytes of KV that beginning a generation will seal, or take in from a sealed copy."""

    def begin(self, request: int) -> Progress | None:
        """Begin a generation that is prepared, to which its prompt is pending.

        None: not yet, for no sequence is free, or one that runs is about to have its prompt's KV.
        """

    def guess(self, request: int, draft: str, count: int) -> int:
        """Have the open model `draft` guess up to `count` of the tokens that a generation says next.

        Its next step checks them: the answer is the same as without. Returns how many there are, 0 also
        where the generation's model cannot check any, or the draft is still reading. Raises CallerError when
        the two models have not the same vocabulary or the draft's licence, judged once for a request, does
        not allow it, GrantRefusedError, and what restoring weights raises.
        """

    def step(self, model: str, requests: Sequence[int], limit: int) -> Sequence[Progress]:
        """Compute one graph for generations that began, of at most `limit` tokens for each.

        Each of them then has another token, has its end, or was broken off; where there were guesses, it
        has a token more for each that was right. Raises nothing.
        """

    def resume(self, request: int) -> int:
        """Have a generation that broke off go on where it was; return its tokens pending."""

    def run(self, request: int) -> Finished:
        """Do all of a request that is no generation. When it was refused memory, it goes on where it was."""

    def stop(self, request: int) -> None:
        """Break a request off, if that hurts no other one. Any thread. Always safe."""

    def end(self, request: int) -> None:
        """Forget a request and let go of what it uses; its KV stays, idle. Always safe."""

    # ---- memory ----------------------------------------------------------------------------------

    def pool(self) -> Pool:
        """Return how secure memory is shared out. Any thread."""

    def memory(self) -> Sequence[ModelMemory]:
        """Return what open models have in memory. Any thread."""

    def chunks(self, model: str) -> Sequence[tuple[int, int]]:
        """Return the states of a model's chunks of weights, in their order, as pairs of a state and a count.

        States are places in `statuses.CHUNK_STATES`. Of a model that is not open there are none. Any thread.
        """

    def missing(self, model: str) -> Missing:
        """Return what a request to `model` finds missing; of one that is not open, nothing is known."""

    def grant(self, size: int, minimum: int) -> int:
        """Ask the OS until `size` bytes are granted and unused; return how many are.

        `minimum` is what the request that runs needs to get on at all. They are kept for it: nothing is
        loaded ahead of need until the next step or run.
        """

    def grant_missing(self, model: str) -> int:
        """As `grant`, for what `missing` says of `model`; return how much of it there is memory for.

        Where weights come in pages of the OS's own they are not granted before: what it says it has counts.
        """

    def evict(
        self,
        model: str,
        kind: Kind,
        size: int,
        *,
        keep: bool,
        until: float = 0.0,
        sequence: int | None = None,
    ) -> int:
        """Give up about `size` bytes; return the bytes that went. Any thread.

        Weights go from the end of the order in which graphs read them. Idle KV is that of `sequence`; when
        none is named, the one used longest ago goes first. `keep`: they stay granted, for others of us.
        Weights of a model that runs go between two slices of its graph: 0 when that does not come until the
        moment `until`.
        """

    def unused(self) -> int:
        """Return the bytes that are granted and unused, as `pool` does, without asking the OS. Any thread."""

    def return_unused(self) -> int:
        """Give back what is granted and unused; return the bytes. Any thread."""

    def report_returned(self, size: int, reason: str = "") -> None:
        """Tell the OS that `size` bytes went back unasked, and why, for people. Any thread."""

    def load(self, model: str, size: int | None) -> None:
        """Bring the first `size` bytes (None: all) of `model` in, while no request has anything to load.

        Returns at once, and ends what an earlier call began. No memory is evicted for it.
        """

    def stop_loading(self) -> None:
        """End what `load` began. Any thread."""

    @property
    def loading(self) -> bool:
        """Whether what `load` began is under way."""

    # ---- KV --------------------------------------------------------------------------------------

    def idle_kv(self) -> Sequence[IdleKv]:
        """Return the idle KV in memory, of each model the one used longest ago first. Any thread."""

    def kv_status(self) -> KvStatus:
        """Return what became of KV so far. Any thread."""

    def sealing_size(self, model: str, sequence: int) -> int:
        """Return the bytes of memory that sealing a sequence takes for a moment."""

    def seal(self, model: str, sequence: int) -> None:
        """Seal idle KV, as far as granted memory allows. Does nothing for what is in use by now."""

    def seal_before(self, deadline: float) -> None:
        """Seal idle KV while the moment `deadline` leaves time for it, asking for no memory. Any thread."""

    # ---- life ------------------------------------------------------------------------------------

    def last_moved(self) -> float:
        """Return the moment of the last sign of life. Any thread."""
