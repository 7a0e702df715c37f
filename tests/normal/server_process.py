"""The whole program over a scripted secure process, as a process that tests talk to."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import openai

from flexserve.testing.script import Behaviour, Fault, Script

SCRIPT = Script(
    models={
        "tiny": Behaviour(),
        "steady": Behaviour(tokens=["word "] * 40, token_delay=0.02),
        "endless": Behaviour(tokens=["word "] * 9_000, token_delay=0.02),
        "dies": Behaviour(tokens=["word "], token_delay=0.05, fault=Fault.DIE),
        "garbage": Behaviour(fault=Fault.GARBAGE),
        "forged": Behaviour(fault=Fault.FAIL),
        "stuck": Behaviour(queue_delay=3600),
    },
    max_queue=3,
)

# What `flexserve serve` does, with the scripted world in the place of the real one.
PROGRAM = """
import dataclasses, sys
from pathlib import Path
from flexserve.errors import FlexServeError
from flexserve.normal import world
from flexserve.normal.key_file import read_keys
from flexserve.normal.main import ServeOptions, serve
from flexserve.protocol.launch import SecureOptions

def scripted(options, fd, *, program):
    module = "flexserve.testing.scripted_world"
    return [sys.executable, "-I", "-m", module, "--channel-fd", str(fd), "--script", sys.argv[1]]

world.secure_command = scripted
secure = SecureOptions(store=Path("/none"), device_key=Path("/none"))
unix, drain = Path(sys.argv[2]), float(sys.argv[3])
key_file = unix.parent / "keys"

def options():
    return ServeOptions(
        secure, port=0, unix_socket=unix, drain_seconds=drain, log_json=True, reread=options,
        api_keys=read_keys(key_file) if key_file.exists() else (),
    )

try:
    sys.exit(serve(options()))
except FlexServeError as error:
    sys.exit(f"refused: {error}")
"""


class Server:
    """A running server process."""

    def __init__(self, folder: Path, script: Script = SCRIPT, *, drain: float = 20, **popen: Any) -> None:
        self.unix = folder / "s"
        self.terminal = -1  # the other end of its terminal, if a test gives it one
        text = msgspec.json.encode(script).decode()
        command = [sys.executable, "-c", PROGRAM, text, str(self.unix), str(drain)]
        self.errors = (folder / "errors").open("w+")
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.errors, text=True, **popen
        )
        assert self.process.stdout is not None
        self.banner = [self.process.stdout.readline() for _ in range(3)]
        self.url = self.banner[0].split()[3].rstrip(",") if self.banner[0] else ""

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30)

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def log(self) -> str:
        self.errors.seek(0)
        return self.errors.read()


def ask(text: str = "hello") -> Any:
    return [{"role": "user", "content": text}]


def until(condition: Any) -> None:
    while not condition():
        time.sleep(0.02)
