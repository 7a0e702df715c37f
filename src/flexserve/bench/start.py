"""From the start of a process to the first token: `flexserve run` and `serve` beside plain llama.cpp.

    python -m flexserve.bench.start [FILE.gguf] [--rounds N] [--memory secret|plain] [--json]

Each round starts every program once, in an order that changes from round to round, with the files of the
model in the page cache. All compute the same number of prompt tokens. `plain` counts from the start of its
Python, `plain, loaded` from when that has imported llama.cpp. `secure world` is started without the normal
world's programs. Prints medians, and the median ratio to `plain` of the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flexserve.bench.measure import prompt_of
from flexserve.errors import PeerError
from flexserve.harness.plain import PlainProcess
from flexserve.harness.served import FLEXSERVE, own_environment
from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic
from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.launch import LinuxMemory, SecureOptions
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.store import Store

_NAME = "start"
_SHAPE, _QUANT = "tinyllama-1.1b", "q4_0"
_QUESTION = "hello"
_CONTEXT = 2048  # tokens
_TOKENS = 4  # the first of a made-up model may be one without text
_PATIENCE = 120.0  # seconds
_STEP = 0.002  # seconds between two tries to connect
_FIRST = "plain"

Samples = dict[str, list[float]]  # seconds, by program


class StartBench:
    """One model, sealed in a folder of its own; `measure` starts each program with it once."""

    def __init__(self, model: Path, folder: Path, memory: LinuxMemory, threads: int) -> None:
        self._model, self._folder, self._memory, self._threads = model, folder, memory, threads
        self._environment = own_environment(folder) | {"XDG_RUNTIME_DIR": str(folder)}  # no server of others
        self._store, self._key = folder / "store", folder / "device.key"
        Store(self._store, DeviceKey.load_or_create(self._key)).add(model, _NAME, lambda _done, _all: None)
        with self._world() as world:  # which makes the image
            prompt_tokens = world.chat(_NAME, _QUESTION, 1).finished.usage.prompt_tokens
        with self._plain() as plain:
            self._text = prompt_of(plain, prompt_tokens)
        self._programs: list[Callable[[], dict[str, float]]] = [
            *(self._start_plain, self._start_world, self._run, self._serve)
        ]

    def measure(self, number: int) -> dict[str, float]:
        """Start each program once, in the order of round `number`; return seconds by name."""
        found: dict[str, float] = {}
        for place in range(len(self._programs)):
            self._read_files()
            found |= self._programs[(number + place) % len(self._programs)]()
        return found

    def _read_files(self) -> None:
        """Have the files of the model in the page cache."""
        for path in (self._model, *(self._store / "models").iterdir(), *(self._store / "images").iterdir()):
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 22):
                    pass

    def _plain(self) -> PlainProcess:
        return PlainProcess(self._model, self._threads, _CONTEXT)

    def _world(self) -> DrivenWorld:
        options = SecureOptions(self._store, self._key, self._memory, threads=self._threads, context=_CONTEXT)
        return DrivenWorld(options)

    def _start_plain(self) -> dict[str, float]:
        began = time.monotonic()
        with self._plain() as plain:
            plain.generate(self._text, 1)
            ended = time.monotonic()
            return {_FIRST: ended - began, "plain, loaded": ended - plain.imported}

    def _start_world(self) -> dict[str, float]:
        began = time.monotonic()
        with self._world() as world:
            world.chat(_NAME, _QUESTION, 1)
            return {"secure world": time.monotonic() - began}

    def _options(self) -> list[str]:
        return [
            *("--memory", self._memory, "--threads", str(self._threads), "--context", str(_CONTEXT)),
            *("--models", str(self._store), "--device-key", str(self._key)),
        ]

    def _run(self) -> dict[str, float]:
        """Have the command start two worlds: nobody serves at the socket where it looks."""
        words = ["run", _NAME, _QUESTION, "--temperature", "0", "--max-tokens", str(_TOKENS)]
        began = time.monotonic()
        with self._started([*words, *self._options()]) as process:
            assert process.stdout is not None
            if not process.stdout.read(1):
                raise PeerError("flexserve run did not answer.", hint="See its messages above.")
            return {"run": time.monotonic() - began}

    def _serve(self) -> dict[str, float]:
        path = self._folder / "serve.sock"
        words = ["serve", "--host", "none", "--unix-socket", str(path), "--log-level", "error"]
        began = time.monotonic()
        with self._started([*words, *self._options()]):
            _ask(path)
            return {"serve": time.monotonic() - began}

    @contextlib.contextmanager
    def _started(self, words: list[str]) -> Any:
        """Run flexserve inside the block, and end it with the block."""
        process = subprocess.Popen(
            [*FLEXSERVE, *words],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.communicate()


def _ask(path: Path) -> None:
    """Connect as soon as somebody listens, ask, and return with the first text of the answer."""
    deadline = time.monotonic() + _PATIENCE
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PATIENCE)
        while connection.connect_ex(str(path)) != 0:
            if time.monotonic() > deadline:
                raise PeerError("The server did not start.", hint="See its messages above.")
            time.sleep(_STEP)
        body = json.dumps(
            {
                "model": _NAME,
                "messages": [{"role": "user", "content": _QUESTION}],
                "stream": True,
                "temperature": 0,
                "max_tokens": _TOKENS,
            }
        )
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        with connection.makefile("rb") as answer:
            for line in answer:
                if line.startswith(b"data: {") and _has_text(json.loads(line[6:])):
                    return
    raise PeerError("The server did not answer.", hint="See its messages above.")


def _has_text(event: dict[str, Any]) -> bool:
    return any(choice["delta"].get("content") for choice in event.get("choices", []))


def table(samples: Samples) -> str:
    """Return medians in seconds, and the median ratios to plain llama.cpp of the same round."""
    lines = ["| from start to first token | seconds | ÷ plain |", "|---|---|---|"]
    for name, times in samples.items():
        ratio = statistics.median(mine / plain for mine, plain in zip(times, samples[_FIRST], strict=True))
        lines.append(f"| {name} | {statistics.median(times):.3f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="flexserve.bench.start", description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", choices=("secret", "plain"), default="secret")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true", help="print every sample")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started ends with this
    samples: Samples = {}
    # On a real disk: a tmpfs would take the memory that models need.
    place = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="flexserve-start-", dir=place) as name:
        folder, model = Path(name), options.model
        if model is None:
            model = folder / f"{_SHAPE}.gguf"
            write_synthetic(model, SHAPES[_SHAPE], _QUANT)
        bench = StartBench(model, folder, options.memory, options.threads)
        for number in range(options.rounds):
            print(f"start: round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)  # noqa: T201
            for program, seconds in bench.measure(number).items():
                samples.setdefault(program, []).append(seconds)
    sys.stdout.write((json.dumps(samples) if options.json else table(samples)) + "\n")


if __name__ == "__main__":
    main()
