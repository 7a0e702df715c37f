"""The pictures of docs/watching.md: `python -m flexserve.testing.screenshots docs/images`.

A real server with models of random weights, and a small one that says a sentence (flexserve.testing.parrot),
is asked and made to give memory back, while Chromium shows its page. It takes some minutes.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from rich.console import Console

from flexserve.cli.top_view import picture
from flexserve.cli.watched import Watched
from flexserve.harness.served import FLEXSERVE, Served, own_environment
from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic
from flexserve.normal.address import Address
from flexserve.normal.client import Client
from flexserve.testing.browser import Browser, Page
from flexserve.testing.parrot import write_parrot

LARGEST = 200_000  # bytes of a picture
_TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
_QUESTION = "What happens to your memory while nobody asks?"
_ANSWER = (
    "It goes back to the machine within milliseconds, and whoever asks next waits only for what was taken."
)
_MODELS = {"medium-llama": "q8_0", "qwen2.5-0.5b": "q4_0"}
_TERMINAL = (124, 34)  # columns and rows of `flexserve top`
# Rich's own frame fetches a font from elsewhere.
_FRAME = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"
height="{height}"><style>.{unique_id}-matrix {{ font: {char_height}px/{line_height}px "DejaVu Sans Mono",
monospace; }} {styles}</style><rect width="100%" height="100%" fill="#14161b"/><g
transform="translate(16, 16)" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}<g
class="{unique_id}-matrix">{matrix}</g></g><defs><clipPath id="{unique_id}-clip-terminal"><rect
width="100%" height="100%"/></clipPath>{lines}</defs></svg>"""


def main() -> int:
    """Write the pictures to a folder. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="screenshots")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory(prefix="screenshots-") as scratch:
        environment = own_environment(Path(scratch))
        _add_models(Path(scratch), environment)
        with (
            Served(environment, Path(scratch) / "log", ["--context", "2048"]) as server,
            Browser() as browser,
        ):
            page = browser.open(f"{server.url}/")
            page.wait_for("document.querySelectorAll('.model').length === 3")
            _play(server.url)
            _chat(page)
            _take(page, folder)
            _take_top(browser, server.port, folder / "top.png")
            server.stop()
    for path in [*folder.glob("page-*.png"), folder / "top.png"]:
        assert path.stat().st_size <= LARGEST, f"{path} is too large"
    return 0


def _add_models(scratch: Path, environment: dict[str, str]) -> None:
    files = {name: scratch / f"{name}.gguf" for name in (*_MODELS, "parrot")}
    for name, quant in _MODELS.items():
        write_synthetic(files[name], SHAPES[name], quant)
    words = _ANSWER.split(" ")
    write_parrot(files["parrot"], [words[0], *(f" {word}" for word in words[1:])], _TEMPLATE)
    for path in files.values():
        subprocess.run([*FLEXSERVE, "add", str(path)], env=environment, check=True, stdout=subprocess.DEVNULL)
        path.unlink()


def _play(url: str) -> None:
    """Have a minute and a half of what servers do: requests, idleness, recalls, requests again."""
    with httpx.Client(base_url=url, timeout=120) as client:

        def ask(model: str, words: int, tokens: int) -> None:
            body = {"model": model, "prompt": "tell me more about it " * words, "max_tokens": tokens}
            client.post("/v1/completions", json=body).raise_for_status()

        def recall(size: int | None) -> None:
            client.post("/recall", json={"bytes": size, "deadline_ms": 2000}).raise_for_status()

        ask("medium-llama", 20, 64)
        time.sleep(8)
        ask("qwen2.5-0.5b", 30, 64)
        ask("medium-llama", 60, 48)
        time.sleep(10)
        recall(300 << 20)
        time.sleep(12)
        ask("qwen2.5-0.5b", 10, 96)
        time.sleep(6)
        recall(None)
        time.sleep(8)
        ask("medium-llama", 40, 128)
        ask("qwen2.5-0.5b", 24, 32)
        time.sleep(6)
        recall(120 << 20)
        time.sleep(4)


def _chat(page: Page) -> None:
    page.value("document.getElementById('model').value = 'parrot'")
    page.value("document.getElementById('prompt').focus()")
    page.type(_QUESTION)
    page.press("Enter", 13)
    page.wait_for("document.querySelector('.turn.assistant .about')?.textContent.includes('first token')")
    page.value("document.activeElement.blur()")
    time.sleep(1.5)  # the next state has this request


def _take(page: Page, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(folder / "page-light.png")
    page.look(dark=True)
    page.click("[data-scope=models]")
    page.screenshot(folder / "page-dark.png")
    page.resize(390, 844)
    page.look()
    time.sleep(0.5)
    page.screenshot(folder / "page-phone.png")


def _take_top(browser: Browser, port: int, path: Path) -> None:
    watched = Watched()
    with Client(Address("127.0.0.1", port)) as client:
        for event in client.events(follow=False):
            watched.take(event)
    width, height = _TERMINAL
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True, highlight=False)
    console.print(picture(watched, width, height))
    svg = path.with_suffix(".svg")
    svg.write_text(console.export_svg(code_format=_FRAME, title=""))
    page = browser.open(svg.absolute().as_uri())
    sides = ("width", "height")
    page.resize(
        *(int(page.value(f"parseInt(document.documentElement.getAttribute('{side}'))")) for side in sides)
    )
    page.screenshot(path)
    svg.unlink()


if __name__ == "__main__":
    sys.exit(main())
