"""The numbers of /metrics in llama-server's names: of all models together, since the start."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from flexserve.protocol.answers import Finished

_PREFIX = "llamacpp:"


class LlamaMetrics:
    """Sums over the requests that ended well. How many graphs were computed is not told to this world."""

    def __init__(self) -> None:
        self._computed = self._cached = self._predicted = self._longest = 0  # tokens
        self._prompt_seconds = self._predicted_seconds = 0.0

    def include(self, finished: Finished) -> None:
        """Add what a request took."""
        usage, timings = finished.usage, finished.timings
        self._computed += usage.prompt_tokens - usage.cached_tokens
        self._cached += usage.cached_tokens
        self._predicted += usage.completion_tokens
        self._longest = max(self._longest, usage.prompt_tokens + usage.completion_tokens)
        self._prompt_seconds += timings.prefill / 1000
        self._predicted_seconds += timings.decode / 1000

    def families(self, *, running: int, waiting: int) -> Iterator[Metric]:
        """Return the numbers, with those of the requests in flight."""
        counted = {
            "prompt_tokens": ("Tokens of prompts that were computed.", self._computed),
            "prompt_tokens_cached": ("Tokens of prompts whose KV was reused.", self._cached),
            "prompt_seconds": ("Time that computing prompts took.", self._prompt_seconds),
            "tokens_predicted": ("Tokens generated.", self._predicted),
            "tokens_predicted_seconds": ("Time that generating took.", self._predicted_seconds),
        }
        for name, (meaning, value) in counted.items():
            yield CounterMetricFamily(f"{_PREFIX}{name}", meaning, value=value)
        rates = {
            "prompt_tokens_seconds": (self._computed, self._prompt_seconds),
            "predicted_tokens_seconds": (self._predicted, self._predicted_seconds),
        }
        for name, (tokens, seconds) in rates.items():
            value = tokens / seconds if seconds else 0.0
            yield GaugeMetricFamily(f"{_PREFIX}{name}", "Tokens in a second, on average.", value=value)
        yield GaugeMetricFamily(
            f"{_PREFIX}n_tokens_max", "Tokens of the longest request.", value=self._longest
        )
        yield GaugeMetricFamily(f"{_PREFIX}requests_processing", "Requests being answered.", value=running)
        yield GaugeMetricFamily(f"{_PREFIX}requests_deferred", "Requests that wait.", value=waiting)
