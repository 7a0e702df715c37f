"""Weights that come in while a graph computes: it begins with the first ones, and waits for others."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from flexserve.errors import FlexServeError
from flexserve.tee_client.application import Application
from flexserve.tee_client.messages import Ask

_TOGETHER = 3  # chunks on their way: two CPUs decrypt, and the next one is there when either is done
_LOOK = 1.0  # seconds after which it is asked what is there, though all seems to be
_PAUSE = 0.02


class Chunks(Protocol):
    """The weights of a model, chunk by chunk (weights.Weights). Any thread."""

    @property
    def whole(self) -> bool:
        """Whether all of them are in memory."""

    def claim(self) -> int | None:
        """Return the first chunk that is missing and nobody loads: who asked has to. None: there is none."""

    def load_claimed(self, chunk: int) -> None:
        """Load it. Raises GrantRefusedError, StoredDataError and NormalWorldError."""

    def look(self) -> None:
        """Ask the application what is there."""


class Streaming:
    """Loads what the model that computes lacks, in the order in which graphs read it. Any thread.

    One model computes at a time. What is evicted meanwhile comes in again. When something cannot come, the
    application is told that it does not: then the graph ends where it would wait.
    """

    def __init__(self, app: Application) -> None:
        self._app = app
        self._changed = threading.Condition()  # guards what follows
        self._weights: Chunks | None = None  # what is to be loaded
        self._error: FlexServeError | None = None  # why no more of it is
        self._left = False  # the application is told, or was
        self._loading = 0  # threads
        for _ in range(_TOGETHER + 1):  # one is free to tell the application
            threading.Thread(target=self._work, name="streaming", daemon=True).start()

    @contextlib.contextmanager
    def of(self, weights: Chunks) -> Iterator[None]:
        """Load these inside the block. Belongs to one thread."""
        with self._changed:
            self._weights, self._error, self._left = weights, None, False
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._weights = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._loading)

    @property
    def error(self) -> FlexServeError | None:
        """Why something did not come, since the last block began."""
        return self._error

    def load(self, weights: Chunks) -> None:
        """Load all of them. Raises as Chunks.load_claimed; what came before stays."""
        with self.of(weights), self._changed:
            self._changed.wait_for(lambda: self._error is not None or weights.whole)
            if self._error is not None:
                raise self._error

    def notice(self) -> None:
        """Look whether there is more to load: something was evicted, or has come."""
        with self._changed:
            self._changed.notify_all()

    def give_up(self, error: FlexServeError) -> None:
        """Load nothing more in the present block; the graph ends where it would wait. Waits for nothing."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    # ---- in its threads ------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            job = self._next()
            try:
                job()
            except FlexServeError as error:
                self.give_up(error)
            finally:
                with self._changed:
                    self._loading -= 1
                    self._changed.notify_all()

    def _next(self) -> Callable[[], None]:
        """Wait for something to do."""
        with self._changed:
            while True:
                weights = self._weights
                job = self._job(weights) if weights is not None else None
                if job is None:
                    late = not self._changed.wait(_LOOK if weights is not None else None)
                    if late and weights is not None and weights is self._weights and self._error is None:
                        job = weights.look
                if job is not None:
                    self._loading += 1
                    return job

    def _job(self, weights: Chunks) -> Callable[[], None] | None:
        if self._error is None:
            chunk = weights.claim() if self._loading < _TOGETHER else None
            return functools.partial(weights.load_claimed, chunk) if chunk is not None else None
        if self._left:
            return None
        self._left = True
        return self._leave

    def _leave(self) -> None:
        """Tell the application that nothing more comes, until it has heard of it or computes no more."""
        while self._weights is not None and not self._app.do(Ask.LEAVE).values[0]:
            with self._changed:
                self._changed.wait_for(lambda: self._weights is None, _PAUSE)
