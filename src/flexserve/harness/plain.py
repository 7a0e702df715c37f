"""Plain llama.cpp, unprotected: the reference that FlexServe is measured and compared against.

A process of its own, since FlexServe's hooks are process-wide: `python -m flexserve.harness.plain
MODEL` answers JSON lines. Same library, threads, context and batch as the secure world's engine,
and like it, it hands each token to another process as soon as it is there; only what FlexServe
adds is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_BATCH = 512  # tokens of a prompt in one graph, as in trusted.engine.context


class PlainProcess:
    """The reference in a process of its own. A context manager.

    Raises RuntimeError when it dies.
    """

    def __init__(
        self, model: Path, threads: int, context: int, *, adapter: Path | None = None, scale: float = 1.0
    ) -> None:
        """Start it; an `adapter` changes the model by `scale` times what it was trained to."""
        began = time.monotonic()
        changes = [f"--adapter={adapter}", f"--scale={scale}"] if adapter is not None else []
        of_model = [str(model), str(threads), str(context), *changes]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flexserve.harness.plain", *of_model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.imported = float(self._read()["imported"])  # monotonic seconds: llama.cpp's library was there
        self.start_seconds = time.monotonic() - began

    def count(self, text: str) -> int:
        """Return how many tokens `text` has."""
        return int(self._ask(text=text, tokens=0)["prompt_tokens"])

    def generate(self, text: str, tokens: int) -> dict[str, Any]:
        """Continue `text` greedily by `tokens` tokens.

        Returns "prompt_tokens", "text", and seconds: "prefill" (to the first logits) and "decode".
        """
        return self._ask(text=text, tokens=tokens)

    def scores(self, text: str, tokens: int) -> list[float]:
        """Continue `text` greedily by `tokens` tokens; return the natural-log probability of each."""
        return list(self._ask(text=text, tokens=tokens, scores=True)["scores"])

    def vector(self, text: str) -> list[float]:
        """Return the vector of `text` as llama.cpp pools it, or the mean where the model says nothing."""
        return list(self._ask(text=text)["vector"])

    def _ask(self, **request: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        while "token" in (answer := self._read()):
            pass  # streamed, as FlexServe streams; the last line has the whole text
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"plain llama.cpp ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it. Always safe."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> PlainProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Plain:
    """llama.cpp through its C interface."""

    def __init__(self, path: str, threads: int, context: int, adapter: str | None, scale: float) -> None:
        from llama_cpp import llama_cpp as lib

        self.imported = time.monotonic()
        self._lib = lib
        self._silent = lib.llama_log_callback(lambda _level, _text, _data: None)
        lib.llama_log_set(self._silent, None)
        lib.llama_backend_init()
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = lib.llama_model_load_from_file(path.encode(), parameters)
        if not self._model:
            raise SystemExit(f"plain llama.cpp cannot load {path}")
        changes = lib.llama_adapter_lora_init(self._model, adapter.encode()) if adapter is not None else None
        if adapter is not None and not changes:
            raise SystemExit(f"plain llama.cpp cannot load {adapter}")
        self._vocabulary = lib.llama_model_get_vocab(self._model)
        settings = lib.llama_context_default_params()
        settings.n_ctx = min(context, lib.llama_model_n_ctx_train(self._model))
        settings.n_batch = settings.n_ubatch = min(_BATCH, settings.n_ctx)
        settings.n_seq_max = settings.n_outputs_max = 1
        settings.n_threads = settings.n_threads_batch = threads
        settings.no_perf = True
        self._context = lib.llama_init_from_model(self._model, settings)
        if changes:
            scales = (lib.ctypes.c_float * 1)(scale)
            lib.llama_set_adapters_lora(
                self._context, (lib.llama_adapter_lora_p_ctypes * 1)(changes), 1, scales
            )
        self._sampler = lib.llama_sampler_init_greedy()

    def vector(self, prompt: list[int]) -> list[float]:
        lib = self._lib
        pooling = lib.llama_pooling_type(self._context)
        poolings = (lib.LLAMA_POOLING_TYPE_MEAN, lib.LLAMA_POOLING_TYPE_CLS, lib.LLAMA_POOLING_TYPE_LAST)
        settings = lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = lib.llama_n_ctx(self._context)
        settings.n_threads = settings.n_threads_batch = 1
        settings.embeddings = True
        settings.pooling_type = pooling if pooling in poolings else lib.LLAMA_POOLING_TYPE_MEAN
        context = lib.llama_init_from_model(self._model, settings)
        run = lib.llama_encode if lib.llama_model_has_encoder(self._model) else lib.llama_decode
        array = (lib.llama_token * len(prompt))(*prompt)
        if run(context, lib.llama_batch_get_one(array, len(prompt))) != 0:
            raise SystemExit("plain llama.cpp could not read the text")
        made = lib.llama_get_embeddings_seq(context, 0)[: lib.llama_model_n_embd_out(self._model)]
        lib.llama_free(context)
        return list(made)

    def answer(self, text: str, tokens: int | None = None, *, scores: bool = False) -> dict[str, object]:
        prompt = self._encode(text)
        if tokens is None:
            return {"vector": self.vector(prompt)}
        if tokens == 0:
            return {"prompt_tokens": len(prompt)}
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)
        began = time.perf_counter()
        for start in range(0, len(prompt), _BATCH):
            self._decode(prompt[start : start + _BATCH])
        first = time.perf_counter()
        chosen: list[int] = []
        found: list[float] = []
        for _ in range(tokens):
            token = self._lib.llama_sampler_sample(self._sampler, self._context, -1)
            if scores:
                found.append(self._score(token))
            if self._lib.llama_vocab_is_eog(self._vocabulary, token):
                break
            chosen.append(token)
            _write({"token": self._piece(token).decode("utf-8", "replace")})
            if len(chosen) < tokens:
                self._decode([token])
        ended = time.perf_counter()
        pieces = b"".join(self._piece(token) for token in chosen)
        return {
            "prompt_tokens": len(prompt),
            "tokens": len(chosen),
            "text": pieces.decode("utf-8", "replace"),
            "scores": found,
            "prefill": first - began,
            "decode": ended - first,
        }

    def _score(self, token: int) -> float:
        """Return the log-probability of `token` after what was read last."""
        logits = self._lib.llama_get_logits_ith(self._context, -1)
        values = logits[: self._lib.llama_vocab_n_tokens(self._vocabulary)]
        largest = max(values)
        return float(values[token] - largest - math.log(sum(math.exp(v - largest) for v in values)))

    def _decode(self, tokens: list[int]) -> None:
        array = (self._lib.llama_token * len(tokens))(*tokens)
        if self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(array, len(tokens))) != 0:
            raise SystemExit("plain llama.cpp could not decode")

    def _encode(self, text: str) -> list[int]:
        data = text.encode()
        array = (self._lib.llama_token * (len(data) + 16))()
        count = self._lib.llama_tokenize(self._vocabulary, data, len(data), array, len(array), True, False)
        return list(array[:count])

    def _piece(self, token: int) -> bytes:
        buffer = bytearray(256)
        array = (self._lib.ctypes.c_char * len(buffer)).from_buffer(buffer)
        count = self._lib.llama_token_to_piece(self._vocabulary, token, array, len(buffer), 0, False)
        return bytes(buffer[:count])


def main() -> None:
    """Answer JSON lines from standard input."""
    parser = argparse.ArgumentParser(prog="flexserve.harness.plain", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("threads", type=int)
    parser.add_argument("context", type=int)
    parser.add_argument("--adapter")
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    plain = _Plain(options.model, options.threads, options.context, options.adapter, options.scale)
    _write({"imported": plain.imported})
    for line in sys.stdin:
        _write(plain.answer(**json.loads(line)))


def _write(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
