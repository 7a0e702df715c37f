"""What monitoring reads of a server, in Prometheus' form: numbers and names of models, nothing else.

Requests are followed as their messages come in. A model becomes a label only once the secure world
has started a request on it, and stops being one when it leaves the store, so clients cannot make
labels up.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Collection, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flexserve.normal.answer import AnswerMessage
from flexserve.normal.llama_metrics import LlamaMetrics
from flexserve.normal.quota import Quota
from flexserve.normal.request_log import Request, RequestLog
from flexserve.protocol.answers import Delta, Failed, Finished, Started

PREFIX = "flexserve"
CONTENT_TYPE = CONTENT_TYPE_LATEST
_MODEL = ["model_name"]
_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The sums and histograms of one server. One event loop."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # process_…, as each exporter names them
        self.first = self._histogram("time_to_first_token_seconds", "From receipt to the first text.", _FIRST)
        self.between = self._histogram("inter_token_latency_seconds", "From token to token.", _BETWEEN)
        self.whole = self._histogram("e2e_request_latency_seconds", "From receipt to the end.", _WHOLE)
        self.queued = self._histogram("request_queue_time_seconds", "From receipt to its turn.", _FIRST)
        self.prompt = self._counter("prompt_tokens", "Tokens of prompts, the reused ones included.")
        self.cached = self._counter("prompt_tokens_cached", "Tokens of prompts whose KV was reused.")
        self.generated = self._counter("generation_tokens", "Tokens generated.")
        self.restored = self._counter("restored_bytes", "Bytes of weights brought back for requests.")
        self.ended = Counter(
            "requests",
            "Requests that were started, by how they ended.",
            [*_MODEL, "reason"],
            namespace=PREFIX,
            registry=self._registry,
        )
        self.waiting: Tally[str] = Tally()  # by model, whether it exists or not
        self.running: Tally[str] = Tally()
        self.llama = LlamaMetrics()
        self.requests = RequestLog()
        self._seen: set[str] = set()

    def follow(self, model: str, quota: Quota | None = None) -> RequestRecord:
        """Return the observer of a request to `model` that is just being made, and that `quota` bounds."""
        return RequestRecord(self, model, quota)

    def started(self, model: str) -> None:
        """Record that `model` exists."""
        self._seen.add(model)

    def forget(self, models: Collection[str]) -> None:
        """Drop the labels of models that are not among `models`."""
        for gone in self._seen - set(models):
            for metric in (self.first, self.between, self.whole, self.queued, self.ended):
                metric.remove_by_labels({"model_name": gone})
            for metric in (self.prompt, self.cached, self.generated, self.restored):
                metric.remove_by_labels({"model_name": gone})
        self._seen &= set(models)

    def text(self, state: Iterable[Metric]) -> bytes:
        """Return everything, with `state`, which is read off and not summed up here."""
        return generate_latest(self._registry) + generate_latest(_Given(state))

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, help_text, _MODEL, namespace=PREFIX, registry=self._registry, buckets=buckets)

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(name, help_text, _MODEL, namespace=PREFIX, registry=self._registry)


class RequestRecord:
    """Follows one request (a normal.answer.Observer)."""

    def __init__(self, metrics: Metrics, model: str, quota: Quota | None) -> None:
        self._metrics, self._model, self._quota = metrics, model, quota
        self._charged = 0  # tokens
        self._began = self._latest = time.monotonic()
        self._started = self._spoke = self._ended = False
        self._logged: Request | None = None  # only what the secure world started: clients make names up
        metrics.waiting[model] += 1

    def saw(self, message: AnswerMessage | Failed) -> None:
        """Record a message."""
        match message:
            case Started():
                self._start(message)
                self._charge(message.prompt_tokens)
            case Delta() if message.tokens:
                self._token(message.tokens)
            case Finished():
                self._finish(message)
            case Failed():
                self._end(message.failure.code if message.failure.code == "cancelled" else "error")

    def lost(self) -> None:
        """Record that no more comes; nothing if the end was seen."""
        self._end("error")

    def _start(self, message: Started) -> None:
        waited = time.monotonic() - self._began
        self._logged = self._metrics.requests.start(self._model, message.prompt_tokens, waited=waited)
        self._started = True
        self._metrics.started(self._model)
        self._metrics.queued.labels(self._model).observe(waited)
        _lower(self._metrics.waiting, self._model)
        self._metrics.running[self._model] += 1

    def _token(self, count: int) -> None:
        now = time.monotonic()
        histogram = self._metrics.between if self._spoke else self._metrics.first
        since = self._latest if self._spoke else self._began
        histogram.labels(self._model).observe((now - since) / (count if self._spoke else 1))
        self._spoke, self._latest = True, now
        self._metrics.generated.labels(self._model).inc(count)
        if self._logged is not None:
            self._metrics.requests.token(self._logged, count, since=now - self._began)
        self._charge(count)

    def _charge(self, tokens: int) -> None:
        """Charge the quota as tokens come: a client that goes away before the end has had them, too."""
        self._charged += tokens
        if self._quota is not None and tokens > 0:
            self._quota.charge(tokens)

    def _finish(self, message: Finished) -> None:
        metrics, model = self._metrics, self._model
        metrics.whole.labels(model).observe(time.monotonic() - self._began)
        metrics.prompt.labels(model).inc(message.usage.prompt_tokens)
        metrics.cached.labels(model).inc(message.usage.cached_tokens)
        metrics.restored.labels(model).inc(message.timings.restored_bytes)
        metrics.llama.include(message)
        if self._logged is not None:
            metrics.requests.finish(self._logged, message)
        self._charge(message.usage.prompt_tokens + message.usage.completion_tokens - self._charged)
        self._end(message.reason if message.reason in ("stop", "length") else "other")

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        _lower(self._metrics.running if self._started else self._metrics.waiting, self._model)
        if self._logged is not None:
            self._metrics.requests.end(self._logged, reason)
        if self._started:
            self._metrics.ended.labels(self._model, reason).inc()


def _lower(tally: Tally[str], model: str) -> None:
    """Count one less, and keep no name that counts nothing: clients may ask for any."""
    tally[model] -= 1
    if not tally[model]:
        del tally[model]


class _Given(CollectorRegistry):
    """A registry of metrics that were already collected."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        super().__init__()
        self.register(_Collected(list(metrics)))


class _Collected(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def gauge(name: str, help_text: str, value: float) -> Metric:
    """Return a number that goes up and down."""
    return GaugeMetricFamily(f"{PREFIX}_{name}", help_text, value=value)


def total(name: str, help_text: str, value: float) -> Metric:
    """Return a sum that someone else keeps."""
    return CounterMetricFamily(f"{PREFIX}_{name}", help_text, value=value)


def by_model(name: str, help_text: str, values: Iterable[tuple[str, float]]) -> Metric:
    """Return a gauge of each model."""
    family = GaugeMetricFamily(f"{PREFIX}_{name}", help_text, labels=_MODEL)
    for model, value in values:
        family.add_metric([model], value)
    return family


def totals(name: str, help_text: str, label: str, values: Mapping[str, int]) -> Metric:
    """Return a sum for each of a fixed set of words, under `label`."""
    family = CounterMetricFamily(f"{PREFIX}_{name}", help_text, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family


def running_and_waiting(metrics: Metrics, models: Iterable[str]) -> Iterator[Metric]:
    """Return the requests in flight of `models`."""
    names = list(models)
    for name, help_text, tally in (
        ("num_requests_running", "Requests that are being answered.", metrics.running),
        ("num_requests_waiting", "Requests that wait for their turn.", metrics.waiting),
    ):
        yield by_model(name, help_text, [(model, tally[model]) for model in names])
