"""The guest's pages that the secure world has: asked for, verified, committed, given back.

    OS's ──WANT, GRANTED──▶ pool ──COMMIT──▶ in use ──RECALL──▶ leaving ──TAKEN──▶ OS's
                              └─────────────REFUSE────────────────▲

Every answer of the OS is a claim. Which pages came is what the monitor reported; in what state a
page is, is read in the monitor's own table before it is committed; and the monitor looks once more
when it carries the COMMIT out. An OS that takes granted pages away again, answers for pages that it
did not grant, or does not answer, costs time up to a bound and ends in GrantRefusedError.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from flexserve.errors import GrantRefusedError, MonitorError, NormalWorldError
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.exchange import (
    Answer,
    Commit,
    Done,
    Event,
    Granted,
    Quiet,
    Recall,
    Refuse,
    Taken,
    Want,
)
from flexserve.platforms.trustzone.mailbox import Mailbox
from flexserve.platforms.trustzone.pool import Pool, Run, count, pieces, spans
from flexserve.platforms.trustzone.ram import BASE, PAGE, Ram
from flexserve.units import format_size

_PATIENCE = 5.0  # seconds that one exchange with the OS may take
_LOOK_AGAIN = 0.02  # seconds between looks at pages whose return a full mailbox may not tell
# As numbers, which numpy compares faster with.
_NORMAL, _GRANTED = int(abi.PageState.NORMAL), int(abi.PageState.GRANTED)
_SECURE, _RECALLING = int(abi.PageState.SECURE), int(abi.PageState.RECALLING)


class Subscriber:
    """Who hears what the monitor tells. This one does nothing; a subclass overrides what concerns it.

    All methods are called by the thread that reads the monitor's events, so none may block.
    """

    def hear(self, event: Event) -> None:
        """Hear of an event that does not concern pages alone. May take a message's time."""

    def end(self) -> None:
        """Hear that the machine is gone, at once."""

    def needs_attachment(self) -> bool:
        """Return whether the secure world has to stay attached though it has no pages. Takes no lock."""
        return False


class GuestPages:
    """The pages of one secure world. Thread-safe. A thread of its own reads the monitor's events."""

    def __init__(self, ram: Ram, mailbox: Mailbox, *, patience: float = _PATIENCE) -> None:
        self.ram, self.mailbox = ram, mailbox
        self._patience = patience
        self._states = np.frombuffer(mailbox.states, np.uint8)
        self._changed = threading.Condition()
        self._pool = Pool()
        self._ours = np.zeros(ram.pages, np.bool_)  # pooled, in use or leaving
        self._leaving = np.zeros(ram.pages, np.bool_)
        self._arrived = 0  # pages granted that no answer has accounted for
        self._serials = itertools.count(1)
        self._wants: dict[int, int | None] = {}  # serial → pages, once answered
        self._commits: dict[int, Run] = {}  # by serial, until carried out
        self._abandoned: set[int] = set()  # those of them that nobody waits for any more
        self._recalls: set[int] = set()  # serials
        self._refusals: dict[int, Run] = {}  # by serial, until carried out
        self._ended = False

    def start(self, subscriber: Subscriber | None = None) -> None:
        """Begin, and have `subscriber` hear what the monitor tells. Once, before anything is asked for.

        Raises NormalWorldError when no monitor answers.
        """
        listen = functools.partial(self._listen, subscriber or Subscriber())
        threading.Thread(target=listen, name="monitor-events", daemon=True).start()
        if self.mailbox.protected(self._patience) is None:
            raise NormalWorldError(
                "No monitor answers on this machine.", hint="Restart it.", code="no_monitor"
            )

    # ---- what the secure world asks for ---------------------------------------------------------

    @property
    def unused(self) -> int:
        """Pages that are here and in nobody's use."""
        return self._pool.pages

    def want(self, pages: int, minimum: int) -> int:
        """Ask the OS for `pages` pages; return how many came into the pool (0: refused, or no answer)."""
        with self._changed:
            serial = next(self._serials)
            self._wants[serial] = None
        if self.mailbox.attach(self._patience):  # and attached it stays while anything is wanted or ours
            self.mailbox.put(Want(serial, pages, minimum))
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._wants[serial] is not None, self._patience)
        with self._changed:
            return self._wants.pop(serial) or 0

    def take(self, pages: int) -> list[Run]:
        """Return `pages` SECURE pages: from the pool, and what lacks from the OS. They read as anything.

        Raises GrantRefusedError, having given back what came in vain.
        """
        deadline = time.monotonic() + self._patience
        while not self._ended and time.monotonic() < deadline:
            with self._changed:
                runs = self._pool.take(pages)
                lacking = pages - self._pool.pages
            if runs:
                if self._commit(runs, deadline):
                    return runs
                continue  # some were taken away again by the OS; the others are back in the pool
            came = self.want(lacking, minimum=lacking)
            if came < lacking:
                self.trim(self.unused - came)
                raise _refused(pages, "did not grant")
        raise _refused(pages, "took back or did not hand over")

    def keep(self, runs: Iterable[Run]) -> None:
        """Put SECURE pages into the pool: they are used again before any other is asked for."""
        with self._changed:
            for run in runs:
                self._pool.add(run)

    def give_back(self, runs: Sequence[Run]) -> None:
        """Give SECURE pages to the OS, which gets them scrubbed. Returns when it has them.

        An OS that does not take what it is offered is not waited for beyond a bound: the pages are
        no longer ours, and it is the one that lacks them.
        """
        self._offer(runs)
        deadline = time.monotonic() + self._patience
        with self._changed:
            while self._held(runs) and not self._ended and time.monotonic() < deadline:
                self._changed.wait(_LOOK_AGAIN)

    def trim(self, pages: int) -> None:
        """Give all but `pages` pages of the pool to the OS, without waiting for it."""
        with self._changed:
            runs = self._pool.take(max(0, self._pool.pages - max(0, pages)))
        self._offer(runs)

    def resident(self) -> int:
        """Return the bytes of ours that the monitor keeps from the OS for us, by its own table.

        GRANTED ones are not among them: nothing uses them, and the OS may take them back.
        """
        # Element by element: an array indexed by a mask that another thread writes is no safe thing.
        held = (self._states == _SECURE) | (self._states == _RECALLING)
        return PAGE * int(np.count_nonzero(held & self._ours))

    def serial(self) -> int:
        """Return a number that no other command of this secure world has."""
        return next(self._serials)

    @property
    def ended(self) -> bool:
        """Whether the machine is gone."""
        return self._ended

    # ---- the exchanges with the monitor ---------------------------------------------------------

    def _commit(self, runs: list[Run], deadline: float) -> bool:
        """Make `runs` out of the pool SECURE. False: the OS took some away; the rest is in the pool again.

        Raises GrantRefusedError when the OS has it not carried out by then.
        """
        with self._changed:
            fresh = [run for run in runs if not self._all(run, _SECURE)]
            if not all(self._all(run, _GRANTED) for run in fresh):
                self._sift(runs)
                return False
            tried = {next(self._serials): run for run in fresh}
            self._commits |= tried
        self.mailbox.put(*(Commit(run.ipa, run.pages, serial) for serial, run in tried.items()))
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or self._commits.keys().isdisjoint(tried),
                max(0.0, deadline - time.monotonic()),
            )
            late = self._commits.keys() & tried
            if not late and all(self._all(run, _SECURE) for run in runs):
                return True
            self._abandoned |= late
            unsettled = {tried[serial] for serial in late}
            self._sift(run for run in runs if run not in unsettled)
        if late:
            raise _refused(count(runs), "does not hand over")
        return False

    def _offer(self, runs: Sequence[Run]) -> None:
        """Send pages back: SECURE ones to be scrubbed, GRANTED ones as they came."""
        if not runs:
            return
        first, end = min(run.ipa for run in runs), max(run.end for run in runs)
        around, most = Run(first, (end - first) // PAGE), abi.CALL_PAGES_MAX
        offered = np.zeros(around.pages, np.bool_)
        for run in runs:
            offered[(run.ipa - first) // PAGE : (run.end - first) // PAGE] = True
        with self._changed:
            self._leaving[_span(around)] |= offered
            states = self._states[_span(around)].copy()
            used, unused = offered & (states == _SECURE), offered & (states == _GRANTED)
            recalls = {next(self._serials): run for run in spans(first, used, np.zeros_like(used), most)}
            # What lies between unused ones and is the OS's stays so: one command does for many small runs.
            refusals = {next(self._serials): run for run in spans(first, unused, states == _NORMAL, most)}
            self._recalls |= recalls.keys()
            self._refusals |= refusals
        self.mailbox.put(
            *(Recall(run.ipa, run.pages, serial) for serial, run in recalls.items()),
            *(Refuse(run.ipa, run.pages, serial) for serial, run in refusals.items()),
        )

    def _listen(self, subscriber: Subscriber) -> None:
        for event in self.mailbox.events():
            with self._changed:
                self._note(event)
                if isinstance(event, Quiet):
                    self._tidy(needed=subscriber.needs_attachment())
                self._changed.notify_all()
            if not isinstance(event, Granted | Taken | Answer):
                subscriber.hear(event)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        subscriber.end()

    def _note(self, event: Event) -> None:
        match event:
            case Granted(ipa, pages) if self.ram.holds(ipa, pages):
                self._welcome(Run(ipa, pages))
            case Taken(ipa, pages) if self.ram.holds(ipa, pages):
                self._farewell(Run(ipa, pages))
            case Answer(serial, pages):
                came = min(pages, self._arrived)
                self._arrived -= came
                if self._wants.get(serial, came) is None:  # else it is late, or was never asked for
                    self._wants[serial] = came
            case Done(serial, status):
                self._settle(serial, status)

    def _welcome(self, run: Run) -> None:
        """Take granted pages into the pool, but for those that are ours already.

        Those on their way to the OS must have been there: it could not have granted them otherwise.
        """
        span = _span(run)
        for new in _where(~self._ours[span] | self._leaving[span], run):
            self._ours[_span(new)] = True
            self._leaving[_span(new)] = False
            self._arrived += new.pages
            for piece in pieces([new], abi.CALL_PAGES_MAX):
                self._pool.add(piece)

    def _farewell(self, run: Run) -> None:
        """Forget pages that the OS has: those that were on their way to it, and those of the pool.

        Pages in use are left alone: they were granted again since, and the news of that is to come.
        """
        for left in self._pool.drop(run):
            self._leaving[_span(left)] = True
        span = _span(run)
        self._ours[span] &= ~self._leaving[span]
        self._leaving[span] = False
        self._arrived = min(self._arrived, self._pool.pages)

    def _tidy(self, *, needed: bool) -> None:
        """Forget pages that the OS has, which a full mailbox may not have told.

        Leave when there are none, unless the attachment is `needed`.
        """
        first = Run(BASE, self.ram.pages)
        for run in _where(self._ours & (self._states == _NORMAL), first):
            self._pool.drop(run)
            self._ours[_span(run)] = self._leaving[_span(run)] = False
        if not self._wants and not self._ours.any() and not needed:
            self.mailbox.detach()  # so that protection can go off

    def _held(self, runs: Iterable[Run]) -> bool:
        """Return whether the monitor keeps any page of `runs` from the OS."""
        states = (self._states[_span(run)] for run in runs)
        return any(bool(((state == _SECURE) | (state == _RECALLING)).any()) for state in states)

    def _settle(self, serial: int, status: abi.Status) -> None:
        if serial in self._recalls:
            self._recalls.remove(serial)
            if status is not abi.Status.OK:
                raise MonitorError(
                    f"The monitor would not take secure pages back ({status.name}).",
                    hint="Restart the machine, and report this as a bug.",
                )
        refused = self._refusals.pop(serial, None)
        if refused is not None and status is not abi.Status.OK:  # the OS took some of it back by itself
            span = _span(refused)
            for left in _where(self._leaving[span] & (self._states[span] == _GRANTED), refused):
                self._leaving[_span(left)] = False
                self._pool.add(left)
        run = self._commits.pop(serial, None)
        if run is not None and serial in self._abandoned:
            self._abandoned.remove(serial)
            self._sift([run])

    def _sift(self, runs: Iterable[Run]) -> None:
        """Put into the pool what of `runs` is still kept from the OS for us; forget the rest."""
        for run in runs:
            states = self._states[_span(run)].copy()
            for state in (_GRANTED, _SECURE):
                for held in _where(states == state, run):
                    self._pool.add(held)
            for lost in _where((states != _GRANTED) & (states != _SECURE), run):
                self._ours[_span(lost)] = False

    def _all(self, run: Run, state: int) -> bool:
        return bool((self._states[_span(run)] == state).all())


def _span(run: Run) -> slice:
    """Return the indices of a run's pages."""
    first = (run.ipa - BASE) // PAGE
    return slice(first, first + run.pages)


def _where(chosen: NDArray[np.bool_], run: Run) -> list[Run]:
    """Return the parts of `run` whose pages are `chosen`."""
    if chosen.all():
        return [run]
    edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False)).tolist()
    starts, ends = edges[::2], edges[1::2]
    return [Run(run.ipa + start * PAGE, end - start) for start, end in zip(starts, ends, strict=True)]


def _refused(pages: int, how: str) -> GrantRefusedError:
    return GrantRefusedError(
        f"The guest's kernel {how} {format_size(pages * PAGE)} of memory.",
        hint="Free memory in the guest, or give the machine more, and try again.",
    )
