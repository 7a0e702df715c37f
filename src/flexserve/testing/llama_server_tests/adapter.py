"""A plugin of pytest for llama.cpp's server tests: how a server is started, and which model it has.

Nothing of the tests is changed. What llama-server is told by its command line and FlexServe by the
request (seed, temperature, length) is put into requests that say nothing of it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import httpx
import openai
import pytest

from flexserve.testing.llama_server_tests.learning import COUNTS, Learned
from flexserve.testing.llama_server_tests.left_out import reason_of
from flexserve.testing.llama_server_tests.models import Wanted, write_model
from flexserve.testing.llama_server_tests.templates import NAMED

_KINDS = {
    "ggml-org/test-model-stories260K": "text",
    "ggml-org/test-model-stories260K-infill": "infill",
    "bert-bge-small/ggml-model-f16.gguf": "vectors",
    "jina-reranker-v1-tiny-en/ggml-model-f16.gguf": "ranks",
}
_LENGTHS = {"/v1/responses": "max_output_tokens", "/responses": "max_output_tokens"}
_SAMPLED = ("/completion", "/completions", "/v1/completions", "/chat/completions", "/v1/chat/completions",
            "/infill")  # fmt: skip
_START_SECONDS = 120.0
_ATTEMPTS = 3
_SHARED = re.compile(r"(?!.*test_(metrics|sleep)\.py)")  # tests that another's server may serve: these count

Server = Any  # the suite's ServerProcess


class _Kept(NamedTuple):
    """A server that runs: for the next test, too, if it wants the same."""

    options: tuple[str, ...]
    port: int
    process: subprocess.Popen[bytes]


class Adapter:
    """Starts servers for the tests: FlexServe, or llama-server (`peer`) to learn what it answers."""

    def __init__(self, suite: Path, folder: Path, peer: str | None) -> None:
        self.suite, self.folder, self.peer = suite, folder, peer
        self.learned = Learned(folder / "learned.json", teaching=peer is not None)
        self.node = ""  # the test that runs
        self._kept: _Kept | None = None

    def start(self, server: Server, start: Callable[..., None]) -> None:
        """Start `server` over a model of ours; `start` is how the suite does it."""
        model = self._model(self._wanted(server))
        if self.peer is not None:
            server.server_path, server.model_file = self.peer, str(model)
            server.model_hf_repo = server.model_hf_file = None
            server.n_threads = server.n_threads or 1
            start(server, int(_START_SECONDS))
            return
        options = tuple(self._options(server, model))
        if self._kept is None or self._kept.options != options or not _SHARED.match(self.node):
            self.end()
            self._kept = self._served(server, options)
        server.server_port = self._kept.port
        sys.modules["utils"].server_instances.add(server)

    def _served(self, server: Server, options: tuple[str, ...]) -> _Kept:
        """Start a server with `options`, and wait for it: a busy machine may need to be asked again."""
        for attempt in range(_ATTEMPTS):
            server.server_port = _free_port()
            command = [sys.executable, "-m", "flexserve.cli", "serve"]
            command += ["--port", str(server.server_port), *options]
            environment = {**os.environ, "XDG_CONFIG_HOME": str(self.folder)}
            with (self.folder / "serve.log").open("ab") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            server.process = process
            try:
                self._wait(server)
            except RuntimeError:
                if attempt + 1 == _ATTEMPTS:
                    raise
            else:
                server.process = None  # the suite ends what it finds there
                return _Kept(options, server.server_port, process)
        raise AssertionError("it starts or raises")

    def end(self) -> None:
        """End the server that runs. Always safe."""
        if self._kept is not None:
            self._kept.process.terminate()
            self._kept.process.wait(_START_SECONDS)
            self._kept = None

    def _wait(self, server: Server) -> None:
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(server.make_url("/health")).status_code == httpx.codes.OK:
                    return
            if server.process.poll() is not None:
                raise RuntimeError(f"flexserve ended with status {server.process.returncode}")
            time.sleep(0.02)
        raise TimeoutError("flexserve did not start")

    def _wanted(self, server: Server) -> Wanted:
        kind = _KINDS.get(server.model_hf_file) or _KINDS.get(server.model_hf_repo)
        if kind is None:
            pytest.skip(f"no such model is at hand: {server.model_hf_repo}")
        template = server.chat_template and NAMED.get(server.chat_template, server.chat_template)
        if server.chat_template_file:
            template = (self.suite / server.chat_template_file).read_text()
        return Wanted(kind, template, server.pooling if kind == "vectors" else None)

    def _model(self, wanted: Wanted) -> Path:
        path = self.folder / f"{wanted.name}.gguf"
        if not path.exists():
            write_model(wanted, path, self.suite.parents[2] / "models")
        return path

    def _options(self, server: Server, model: Path) -> Iterator[str]:
        store = self._store(model, server.model_alias or "model")
        yield from ("--models", str(store), "--log-level", "error")
        yield from ("--device-key", str(self.folder / "device.key"))
        yield from ("--threads", str(server.n_threads or 1))
        slots = server.n_slots or 4
        context = server.n_ctx or 2048
        yield from ("--context", str(context if server.kv_unified else context // slots))
        yield from ("--parallel", str(slots))
        if server.api_key:
            keys = self.folder / "keys"
            keys.touch(mode=0o600)
            keys.write_text(server.api_key + "\n")
            yield from ("--api-key-file", str(keys))

    def _store(self, model: Path, name: str) -> Path:
        store = self.folder / f"{model.stem}-{name}"
        if not store.exists():
            begun = store.with_name(f"{store.name}.{os.getpid()}")
            command = [sys.executable, "-m", "flexserve.cli", "add", str(model), "--name", name]
            command += ["--models", str(begun), "--device-key", str(self.folder / "device.key")]
            environment = {**os.environ, "XDG_CONFIG_HOME": str(self.folder)}
            subprocess.run(command, check=True, env=environment)
            begun.replace(store)
        return store

    def completed(self, server: Server, path: str, body: Any) -> Any:
        """Return a request's body with what a command line of llama-server would say."""
        if self.peer is not None or not isinstance(body, dict):
            return body
        body = dict(body)
        if body.get("model") is not None:
            body["model"] = server.model_alias or "model"
        path = path.partition("?")[0]
        if server.reasoning == "off" and "messages" in body:
            body.setdefault("enable_thinking", False)
        if server.debug and path.endswith("/chat/completions"):
            body.setdefault("verbose", True)
        if path in _SAMPLED or path in _LENGTHS:
            body.setdefault("seed", server.seed)
            body.setdefault("user", self.node)  # nothing is reused of what another test asked
            body.setdefault("temperature", server.temperature)
            if server.sleep_idle_seconds is not None:
                body.setdefault("keep_alive", server.sleep_idle_seconds)
            name = _LENGTHS.get(path, "n_predict")
            said = any(body.get(key) is not None for key in (name, "max_tokens", "max_completion_tokens"))
            if server.n_predict and not said:
                body[name] = server.n_predict
        return body


class _Completing(httpx.HTTPTransport):
    """Completes what OpenAI's client sends, as the suite's own requests are."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self._adapter = adapter

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        content = request.read()
        if content:
            server = next(iter(sys.modules["utils"].server_instances))
            body = self._adapter.completed(server, request.url.path, json.loads(content))
            headers = {k: v for k, v in request.headers.items() if k.lower() != "content-length"}
            request = httpx.Request(request.method, request.url, headers=headers, json=body)
        return super().handle_request(request)


def _stand_ins() -> None:
    """Provide what the suite imports and needs only to download."""
    for name, thing in (("wget", "download"), ("filelock", "FileLock")):
        module = types.ModuleType(name)
        setattr(module, thing, lambda *_a, **_k: contextlib.nullcontext())
        sys.modules.setdefault(name, module)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Put the adapter between the suite and its servers, before the suite's own conftest is read."""
    suite = Path(str(early_config.rootpath))
    folder = Path(os.environ["LLAMA_SUITE_FOLDER"])
    adapter = Adapter(suite, folder, os.environ.get("LLAMA_SUITE_PEER"))
    early_config.stash[_KEY] = adapter
    os.environ["PORT"] = str(_free_port())
    _stand_ins()
    sys.path.insert(0, str(suite))
    os.chdir(suite)
    utils = importlib.import_module("utils")
    process = utils.ServerProcess
    start, ask, stream = process.start, process.make_request, process.make_stream_request

    def begin(server: Server, **_times: float) -> None:
        adapter.start(server, start)

    def make_request(server: Server, method: str, path: str, data: Any = None, *a: Any, **k: Any) -> Any:
        found = ask(server, method, path, adapter.completed(server, path, data), *a, **k)
        found.headers = httpx.Headers(found.headers)  # whose names mean the same in small letters
        return found

    def make_stream(server: Server, method: str, path: str, data: Any = None, *a: Any, **k: Any) -> Any:
        return stream(server, method, path, adapter.completed(server, path, data), *a, **k)

    process.start, process.make_request, process.make_stream_request = begin, make_request, make_stream
    utils.ServerPreset.load_all = staticmethod(lambda: None)
    vars(utils)["match_regex"] = adapter.learned.matches
    made = openai.OpenAI.__init__

    def connect(client: openai.OpenAI, **options: Any) -> None:
        completing: Any = httpx.Client(transport=_Completing(adapter), timeout=600)
        made(client, **options, http_client=completing, max_retries=0)

    vars_of = cast(Any, openai.OpenAI)
    vars_of.__init__ = connect


_KEY = pytest.StashKey[Adapter]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what does not apply."""
    for item in items:
        reason = reason_of(item.nodeid)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"not applicable: {reason}"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Expect what was learned."""
    adapter = item.config.stash[_KEY]
    adapter.node = item.nodeid
    learned = adapter.learned
    learned.begin(item.nodeid)
    call = getattr(item, "callspec", None)
    if call is not None:
        for name in COUNTS:
            if isinstance(call.params.get(name), int):
                call.params[name] = learned.count(call.params[name])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep what was learned, and end what runs."""
    session.config.stash[_KEY].learned.save()
    session.config.stash[_KEY].end()
