"""The numbers of /metrics in llama-server's names and types: of all models together, since the start."""

from __future__ import annotations

from collections.abc import Iterator

from flexserve.protocol.answers import Finished
from flexserve.protocol.statuses import ComputeStatus

_Row = tuple[str, str, str, float]  # type, name, meaning, value


class LlamaMetrics:
    """Sums over the requests that ended well. The two rates are those since they were read last."""

    def __init__(self) -> None:
        self._computed = self._cached = self._predicted = self._longest = 0  # tokens
        self._guessed = self._right = 0  # tokens, too
        self._prompt_seconds = self._predicted_seconds = 0.0
        self._read = (0, 0.0, 0, 0.0)  # what the rates are made of, when they were read last

    def include(self, finished: Finished) -> None:
        """Add what a request took."""
        usage, timings = finished.usage, finished.timings
        self._computed += usage.prompt_tokens - usage.cached_tokens
        self._cached += usage.cached_tokens
        self._predicted += usage.completion_tokens
        self._guessed += timings.guessed
        self._right += timings.guessed_right
        self._longest = max(self._longest, usage.prompt_tokens + usage.completion_tokens)
        self._prompt_seconds += timings.prefill / 1000
        self._predicted_seconds += timings.decode / 1000

    def text(self, *, running: int, waiting: int, computed: ComputeStatus) -> bytes:
        """Return the numbers in Prometheus' form; the next rates begin here.

        `running` and `waiting` are requests; `computed` is what the secure world counted.
        """
        rows = [*self._counters(computed), *self._rates()]
        rows.append(("gauge", "requests_processing", "Requests being answered.", running))
        rows.append(("gauge", "requests_deferred", "Requests that wait.", waiting))
        busy = computed.requests / max(1, computed.graphs)
        rows.append(("gauge", "n_busy_slots_per_decode", "Requests in a graph, on average.", busy))
        # prometheus_client would call each counter `…_total`, and llama-server has one that it does not.
        return "".join(
            f"# HELP llamacpp:{name} {meaning}\n# TYPE llamacpp:{name} {kind}\nllamacpp:{name} {value}\n"
            for kind, name, meaning, value in rows
        ).encode()

    def _counters(self, computed: ComputeStatus) -> Iterator[_Row]:
        for name, meaning, value in (
            ("prompt_tokens_total", "Tokens of prompts that were computed.", self._computed),
            ("prompt_tokens_cached_total", "Tokens of prompts whose KV was reused.", self._cached),
            ("prompt_seconds_total", "Time that computing prompts took.", self._prompt_seconds),
            ("tokens_predicted_total", "Tokens generated.", self._predicted),
            ("tokens_predicted_seconds_total", "Time that generating took.", self._predicted_seconds),
            ("n_decode_total", "Graphs computed.", computed.graphs),
            ("n_tokens_max", "Tokens of the longest request.", self._longest),
            ("spec_decode_num_drafts_total", "Graphs that checked guesses of a draft.", computed.checks),
            ("spec_decode_num_draft_tokens_total", "Tokens that drafts guessed.", self._guessed),
            ("spec_decode_num_accepted_tokens_total", "Of these, those that were right.", self._right),
        ):
            yield "counter", name, meaning, value

    def _rates(self) -> Iterator[_Row]:
        now = (self._computed, self._prompt_seconds, self._predicted, self._predicted_seconds)
        prompt, prompt_seconds, predicted, predicted_seconds = (
            new - old for new, old in zip(now, self._read, strict=True)
        )
        self._read = now
        meaning = "Tokens in a second of it, since this was read last."
        yield "gauge", "prompt_tokens_seconds", meaning, prompt / prompt_seconds if prompt_seconds else 0.0
        rate = predicted / predicted_seconds if predicted_seconds else 0.0
        yield "gauge", "predicted_tokens_seconds", meaning, rate
