"""`make demo`: a sealed model answers, the OS takes its memory back, and it answers the same again.

    python -m flexserve.bench.demo [MODEL.gguf] [--platform trustzone [--secure-world inside|host]]

Every step is a command that could be typed, run on a store and a key that are made for this and
removed afterwards. Exits with 0 if both answers are the same, 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from flexserve.attestation.policy import ALLOW_EMULATED
from flexserve.errors import FlexServeError, NormalWorldError, PeerError
from flexserve.harness.served import FLEXSERVE, Served, own_environment
from flexserve.platforms.linux.secure_memory import probe_secret_memory
from flexserve.settings import Settings
from flexserve.units import MIB, format_size

DEFAULT_MODEL = Path(__file__).parents[3] / "models" / "tiny" / "flexserve-tiny.gguf"
QUESTION = "What is Flex-Mem?"
MAX_TOKENS = 80  # of an answer; keeps the demo short with any model
_NAME = "demo"
_NEEDED = 256 * MIB  # of secret memory; the secure world does not start with less
_PATIENCE = 180.0  # seconds that one command may take; an emulated CPU is slow
_WARNING = "bold yellow"


class Demo:
    """The demo in one temporary folder. `environment` is all the configuration its commands see.

    `machine`: "inside" or "host", where models compute on the emulated machine; none: they do on this one.
    """

    def __init__(self, folder: Path, console: Console, machine: str | None = None) -> None:
        self._folder = folder
        self._console = console
        self._machine = machine
        self.environment = own_environment(folder)

    def run(self, model: Path) -> int:
        """Show everything; return the exit status. Raises FlexServeError when a step fails."""
        self._heading("FlexServe: a sealed model, in memory that the OS can take back and cannot read")
        if self._machine is None:
            self._choose_memory()
        else:
            self._build_machine(self._machine)
        self._step("Seal the model for this device")
        self._show("add", _short(model), "--name", _NAME)
        self._step("Serve it")
        with self._server():
            self._step("Ask")
            first = self._ask()
            self._console.print(
                f"(first token after {_ttft(first)}; a first use prepares the model for this CPU)"
            )
            self._step("See what is in memory")
            self._show("ps")
            self._step("The OS takes everything back")
            self._show("recall", "--all")
            self._step("Ask again: what was taken comes back, decrypted and checked, while it computes")
            second = self._ask()
            restored = format_size(second["timings_ms"]["restored_bytes"])
            self._console.print(
                f"(first token after {_ttft(second)}, from a cold start: {restored} restored)"
            )
            self._ask_sealed()
            self._step("Stop the server (Ctrl-C)")
        return self._compare(first["answer"], second["answer"])

    def _ask_sealed(self) -> None:
        """Ask over a sealed channel to the secure world, verified by what it should consist of."""
        self._step("Ask so that only the secure world can read it: verify it, and seal the question to it")
        policy, receipts = self._folder / "policy.toml", self._folder / "receipts"
        receipts.mkdir()
        machine = ("--platform", "trustzone", "--secure-world", self._machine) if self._machine else ()
        self._show("measure", *machine, "--policy", str(policy))
        answer, receipt = self._answer_through_connect(policy, receipts)
        self._console.print(answer.strip(), markup=False, style="cyan")
        self._step("See which weights answered, by the receipt that the secure world signed")
        text = self._folder / "answer"
        text.write_text(answer)
        self._show("receipt", "verify", str(receipt), "--policy", str(policy), "--answer", str(text))

    def _answer_through_connect(self, policy: Path, receipts: Path) -> tuple[str, Path]:
        """Ask the question by `flexserve connect`; return the answer and its receipt's file."""
        # Without a secure element the root of attestation is of software, which a policy has to allow.
        policy.write_text(policy.read_text().replace('emulated = "refuse"', ALLOW_EMULATED))
        command = ("connect", f"http://127.0.0.1:{self.environment['FLEXSERVE_PORT']}")
        arguments = ("--policy", str(policy), "--receipts", str(receipts))
        self._echo((*command, *arguments))
        log = self._folder / "connect.log"
        with Served(self.environment, log, arguments, command=command) as connected:
            self._console.print(connected.greeting[-1], markup=False)
            body = {"model": _NAME, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
            url = f"{connected.url}/v1/chat/completions"
            said = httpx.post(url, json={**body, "max_tokens": MAX_TOKENS}, timeout=_PATIENCE).json()
            connected.stop()
        (receipt,) = receipts.iterdir()
        return said["choices"][0]["message"]["content"], receipt

    def _compare(self, first: str, second: str) -> int:
        if first == second:
            self._console.print(
                "\n[bold green]IDENTICAL[/]: the answer after the recall is the one before it."
            )
            return 0
        self._console.print("\n[bold red]DIFFERENT[/]: the answer after the recall is not the one before it.")
        return 1

    def _choose_memory(self) -> None:
        """Use secret memory, or say why not and use plain memory."""
        try:
            probe_secret_memory(_NEEDED)
        except NormalWorldError as error:
            self._console.print(
                f"{error}\nSo this demo runs with --memory plain: UNPROTECTED.", markup=False, style=_WARNING
            )
            self.environment["FLEXSERVE_MEMORY"] = "plain"

    def _build_machine(self, secure_world: str) -> None:
        """Build what the emulated machine lacks, and have the commands use it."""
        from flexserve.emulator.images import images_for

        chosen = Settings.model_construct()  # as by default: nothing of the configuration around it
        inside = secure_world == "inside"
        images_for(
            ram_bytes=chosen.guest_memory,
            cpus=chosen.guest_cpus,
            progress=lambda what: self._console.print(f"==> {what}", markup=False),
            npu=chosen.npu and not inside,
            inside=inside,
        )
        self.environment |= {"FLEXSERVE_PLATFORM": "trustzone", "FLEXSERVE_SECURE_WORLD": secure_world}

    @contextlib.contextmanager
    def _server(self) -> Iterator[None]:
        """Serve during the block on a free port; stop in good order after it."""
        self._echo(("serve", "--port", "0"))
        with Served(self.environment, self._folder / "server.log") as server:
            for line in server.greeting:
                self._console.print(line, markup=False)
            self.environment["FLEXSERVE_PORT"] = str(server.port)
            yield
            server.stop()
        self._console.print("stopped, exit status 0")

    def _ask(self) -> dict[str, Any]:
        """Ask the question, show the answer, return all that is known about it."""
        arguments = ("run", _NAME, QUESTION, "--temperature", "0", "--max-tokens", str(MAX_TOKENS))
        self._echo(arguments)
        answer: dict[str, Any] = json.loads(self._command(*arguments, "--json"))
        self._console.print(answer["answer"].strip(), markup=False, style="cyan")
        return answer

    def _show(self, *arguments: str) -> None:
        self._echo(arguments)
        self._console.print(self._command(*arguments).rstrip(), markup=False)

    def _command(self, *arguments: str) -> str:
        """Run a command of ours and return its standard output. Raises PeerError when it fails."""
        done = subprocess.run(
            [*FLEXSERVE, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        if done.returncode != 0:
            raise PeerError(f"`flexserve {arguments[0]}` failed.", hint=done.stderr.strip())
        return done.stdout

    def _heading(self, text: str) -> None:
        self._console.print(f"[bold]{text}[/]")

    def _step(self, text: str) -> None:
        self._console.print()
        self._heading(text)

    def _echo(self, arguments: Sequence[str]) -> None:
        words = [f'"{word}"' if " " in word else word for word in arguments]
        self._console.print(f"$ flexserve {' '.join(words)}", markup=False, style="dim")


def _short(path: Path) -> str:
    """Return `path` as one would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _ttft(answer: dict[str, Any]) -> str:
    return f"{answer['timings_ms']['ttft']:.0f} ms"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m flexserve.bench.demo", description=main.__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=DEFAULT_MODEL, help="a GGUF file")
    parser.add_argument("--platform", choices=("linux", "trustzone"), default="linux", help="what it runs on")
    parser.add_argument(
        "--secure-world", choices=("inside", "host"), help="on trustzone: where models compute [inside]"
    )
    given = parser.parse_args(arguments)
    if given.platform == "linux" and given.secure_world is not None:
        parser.error("--secure-world is of --platform trustzone.")
    model: Path = given.model
    machine = (given.secure_world or "inside") if given.platform == "trustzone" else None
    console = Console(highlight=False, soft_wrap=True)
    if model == DEFAULT_MODEL and not model.is_file():
        console.print(
            "error: A wheel has no model for the demo.\nName a GGUF file, or use a checkout.", style="red"
        )
        return 1
    try:
        with tempfile.TemporaryDirectory(prefix="flexserve-demo-") as folder:
            return Demo(Path(folder), console, machine).run(model)
    except FlexServeError as error:
        console.print(f"\nerror: {error.message}\n{error.hint}", markup=False, style="red")
        return 1
    except subprocess.TimeoutExpired as error:
        console.print(f"\nerror: `flexserve {error.cmd[3]}` took longer than {_PATIENCE:.0f} s.", style="red")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
