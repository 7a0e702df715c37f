"""A real `flexserve serve` over real (small) models, with a key, on TCP and on a Unix socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest

from flexserve.bench.group import MemoryGroup
from flexserve.errors import NormalWorldError
from flexserve.harness import synth
from flexserve.harness.shapes import SHAPES
from flexserve.platforms.linux.secure_memory import probe_secret_memory
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.store import Store
from flexserve.units import MIB

TINY = Path(__file__).parents[2] / "models" / "tiny" / "flexserve-tiny.gguf"
KEY = "sk-conformance-key"
# A chat template of our own that offers tools the way Hermes and Qwen do.
TEMPLATE = """{{ bos_token }}{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools> Answer <tool_call>{"name": NAME, "arguments": ARGUMENTS}</tool_call>
{% endif %}{% for message in messages %}<|{{ message.role }}|>
{{ message.content }}{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>
{% endfor %}<|end|>
{% endfor %}<|assistant|>
"""


class Server:
    """A running server (in `group`) over a store in `folder`: its addresses, and clients of it.

    `platform`: "linux", or "trustzone-inside" or "trustzone-host", by where its models compute. `python`:
    what runs it.
    """

    def __init__(
        self,
        folder: Path,
        group: MemoryGroup | None = None,
        *,
        platform: str = "linux",
        python: str = sys.executable,
    ) -> None:
        self.store = Store(folder / "store", DeviceKey.load_or_create(folder / "device.key"))
        _fill(self.store, folder)
        self.unix = folder / "socket"
        platform, _, where = platform.partition("-")
        command = [python, "-m", "flexserve.cli", "serve", "--port", "0", "--socket", str(self.unix)]
        command += ["--models", str(folder / "store"), "--device-key", str(folder / "device.key")]
        command += ["--threads", "1", "--context", "512", "--log-level", "error", "--platform", platform]
        machine = ["--guest-memory", "512M", "--no-npu", "--secure-world", where]
        command += ["--memory", _memory()] if platform == "linux" else machine
        command = group.command(command) if group else command
        environment = {**os.environ, "XDG_CONFIG_HOME": str(folder), "FLEXSERVE_API_KEY": KEY}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        banner = next((line for line in self._process.stdout if "http://" in line), "")
        self.url = banner.split()[3].rstrip(",") if banner else ""

    def end(self) -> int:
        """Stop it in good order; return its exit status."""
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(60)

    def openai(self, *, key: str = KEY, over_unix: bool = False) -> openai.OpenAI:
        transport = httpx.HTTPTransport(uds=str(self.unix)) if over_unix else None
        http = httpx.Client(transport=transport, timeout=60)
        url = "http://localhost/v1" if over_unix else f"{self.url}/v1"
        return openai.OpenAI(base_url=url, api_key=key, max_retries=0, http_client=cast(Any, http))

    def recall_all(self) -> None:
        """Take all memory back, and see that the server says so."""
        headers = {"Authorization": f"Bearer {KEY}"}
        httpx.post(f"{self.url}/recall", headers=headers, timeout=60).raise_for_status()


class Connected:
    """`flexserve connect` to `server`, its receipts in `folder`: where it is asked, and clients of it."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.receipts, self.policy = folder / "receipts", folder / "policy.toml"
        self.receipts.mkdir()
        self.policy.write_text('emulated = "allow"\n')  # the root is of software
        command = [sys.executable, "-m", "flexserve.cli", "connect", server.url, "--port", "0"]
        command += ["--policy", str(self.policy), "--receipts", str(self.receipts), "--log-level", "error"]
        environment = {**os.environ, "XDG_CONFIG_HOME": str(folder), "FLEXSERVE_API_KEY": KEY}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        banner = self._process.stdout.readline()
        self.url = banner.split()[3] if banner else ""

    def end(self) -> int:
        """Stop it in good order; return its exit status."""
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(60)

    def openai(self) -> openai.OpenAI:
        http = httpx.Client(timeout=60)
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key="not wanted",
            max_retries=0,
            http_client=cast(Any, http),
        )


def skip_if_refused_inside(answer: httpx.Response) -> None:
    """Skip the test when a secure world inside of the machine refuses by name what this one asks for.

    docs/trustzone.md lists what that is. No other server answers with this code.
    """
    if answer.is_error and answer.json()["error"]["code"] == "secure_world_inside":
        pytest.skip(answer.json()["error"]["message"])


def _fill(store: Store, folder: Path) -> None:
    store.add(TINY, "tiny", lambda _done, _total: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synth, "CHAT_TEMPLATE", TEMPLATE)
        synth.write_synthetic(folder / "caller.gguf", SHAPES["small-llama"], "q4_0")
    store.add(folder / "caller.gguf", "caller", lambda _done, _total: None)


def _memory() -> str:
    try:
        probe_secret_memory(256 * MIB)
    except NormalWorldError:
        return "plain"
    return "secret"
