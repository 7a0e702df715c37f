"""The policies over one application, as one normal world asks for them."""

from __future__ import annotations

import functools
import os
import queue
import threading
from collections.abc import Callable
from typing import Protocol

import msgspec

from flexserve.policy.eviction_policy import EvictionPolicy
from flexserve.protocol.memory import Pin, Recall, Recalled
from flexserve.protocol.messages import Configure, Query, Shutdown, Status
from flexserve.protocol.requests import Cancel
from flexserve.protocol.statuses import MemoryStatus, ModelStatus, NpuStatus
from flexserve.protocol.trusted_app import Ticket, TrustedApp
from flexserve.serving.memory_manager import MemoryManager
from flexserve.serving.model_manager import ModelManager
from flexserve.serving.rewarming import AskSpare
from flexserve.serving.scheduler import Scheduler

Send = Callable[[msgspec.Struct], None]
Command = Cancel | Pin | Configure | Shutdown | Recall | Query  # what has no contents of requests


class Options(Protocol):
    """What of protocol.launch.SecureOptions counts here."""

    @property
    def max_queue(self) -> int:
        """Requests that may wait."""

    @property
    def parallel(self) -> int:
        """Requests that a model answers at once."""

    @property
    def step_seconds(self) -> float:
        """In which something has to move while the engine computes."""

    @property
    def idle_seconds(self) -> float:
        """After which an idle model gives its memory back unasked."""

    @property
    def cache_threshold(self) -> float:
        """The share of the requests with which a model is worth caching."""

    @property
    def cache_top(self) -> int:
        """How many are when none has that share."""


class Service:
    """Schedules requests and shares memory out. Each method may be called by any thread.

    `send` sends to the normal world; `report` does so with the ends of requests. `spare` is as Rewarmer has
    it. `rss` returns the bytes that the OS counts as resident for this process, `npu` what became of the NPU.
    """

    def __init__(
        self,
        app: TrustedApp,
        options: Options,
        send: Send,
        *,
        report: Send,
        rss: Callable[[], int],
        spare: AskSpare | None = None,
        npu: Callable[[], NpuStatus | None] = lambda: None,
    ) -> None:
        self._app, self._send, self._rss, self._npu = app, send, rss, npu
        self._models = ModelManager(app, options.idle_seconds)
        policy = EvictionPolicy(app.chunk, threshold=options.cache_threshold, top=options.cache_top)
        self._memory = MemoryManager(app, self._models, policy, spare)
        self._scheduler = Scheduler(
            *(app, self._models, self._memory, report),
            limit=options.max_queue,
            sequences=options.parallel,
            patience=options.step_seconds,
        )
        self._recalls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.later = self._recalls.put  # called one at a time, from the thread that answers recalls
        threading.Thread(target=self._answer_recalls, name="reclaimer", daemon=True).start()

    def submit(self, ticket: Ticket) -> None:
        """Have a request that was admitted run."""
        self._scheduler.submit(ticket)

    def recall(self, message: Recall) -> Recalled:
        """Give memory up; return what went. In the thread of `later`."""
        return self._memory.answer(message)

    def close_idle(self) -> None:
        """Have models that no request uses closed, when the engine is quiet next."""
        self._models.close_idle()
        self._scheduler.memory_changed()

    def obey(self, message: Command) -> None:
        """Do what the normal world asks, and answer it if there is an answer."""
        match message:
            case Cancel():
                self._scheduler.cancel(message.request)
            case Recall():
                self.later(functools.partial(self._answer, message))
            case Pin():
                self._memory.pin(message.models)
            case Configure():
                options = message.models.items()
                self._scheduler.use_drafts({name: its.draft for name, its in options if its.draft})
            case Query():
                self._send(self.status(message.serial))
            case Shutdown():
                # Aside, since what still runs may need grants, which the caller may be who takes them in.
                threading.Thread(target=self._shut_down, args=(message,), daemon=True).start()

    def status(self, serial: int) -> Status:
        """Return how things are. Never wakes a model."""
        queued, running = self._scheduler.counts()
        pool = self._app.pool()
        memory = MemoryStatus(
            chunk=self._app.chunk,
            granted=pool.granted,
            secure=pool.secure,
            recalling=pool.recalling,
            os_secure=pool.resident,
            os_rss=self._rss(),
        )
        kv = self._app.kv_status()
        return Status(
            *(serial, self._model_statuses(), memory, queued, running, kv, self._npu()),
            computed=self._scheduler.computed(),
        )

    def _model_statuses(self) -> list[ModelStatus]:
        rewarmed = self._memory.rewarmed()
        return [
            msgspec.structs.replace(status, rewarmed=found[0], rewarmed_for=found[1])
            if (found := rewarmed.get(status.name))
            else status
            for status in self._models.statuses()
        ]

    def _answer_recalls(self) -> None:
        while True:
            self._recalls.get()()

    def _answer(self, message: Recall) -> None:
        self._send(self._memory.answer(message))
        self._scheduler.memory_changed()

    def _shut_down(self, message: Shutdown) -> None:
        self._scheduler.drain(message.drain / 1000)
        os._exit(0)
