"""What becomes of a model of each architecture in a real secure world: the table docs/architectures.md.

    python -m flexserve.testing.architecture_table docs/architectures.md

A tiny model of random weights of each is made, added and tried; of those that make text, the text is
compared with that of plain llama.cpp.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flexserve.bench.plain import PlainProcess
from flexserve.bench.worlds import DrivenWorld
from flexserve.errors import FlexServeError
from flexserve.secure.models import DeviceKey, Store
from flexserve.testing.architectures import ARCHITECTURES, UNMADE, make_models
from flexserve.world.messages import Failed, Finished, Started, Try

PROMPT = "Once there was a house."
TOKENS = 8
_CONTEXT = 256
_OPTIONS = ("--context", str(_CONTEXT), "--threads", "1", "--granule", "65536", "--memory", "plain")
_HEAD = """# Architectures

What becomes of a tiny model of random weights of each architecture that the pinned llama.cpp knows, in a
real secure world: tried as `flexserve add` tries it, its text compared with that of plain llama.cpp.
Written by `python -m flexserve.testing.architecture_table docs/architectures.md`.

*Refused*: this tiny model is not added. Where llama.cpp aborts, it ends the process that tries the model,
and no server. The model is made of what llama.cpp's loader asks for; where its graph wants more than that,
a published model may run.

| Architecture | In a secure world |
|---|---|
"""


def table(architectures: Sequence[str]) -> str:
    """Return the document for `architectures`."""
    return _HEAD + "".join(f"| {name} | {outcome} |\n" for name, outcome in outcomes(architectures))


def outcomes(architectures: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each architecture with what became of its model."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        unmade = make_models([name for name in architectures if name not in UNMADE], root / "gguf")
        store = Store(root / "store", DeviceKey.load_or_create(root / "device.key"))
        for name in architectures:
            if why := UNMADE.get(name) or unmade.get(name):
                yield name, f"refused: no model can be made ({_one_line(why)})"
            else:
                yield name, _outcome(root, store, name)


def _outcome(root: Path, store: Store, name: str) -> str:
    source, sealed_as = root / "gguf" / f"{name}.gguf", name.lower()
    try:
        manifest = store.add(source, sealed_as, lambda _done, _total: None)
    except FlexServeError as error:
        return f"refused by the reader: {_one_line(error.message)}"
    end = _in_a_world(root, sealed_as, None)
    record = store.record(manifest)
    if record is None or not (record.abilities.text or record.abilities.vectors):
        return f"refused: {_one_line(end)}"
    can = [_text(root, source, sealed_as)] if record.abilities.text else []
    return ", ".join(can + (["vectors"] if record.abilities.vectors else []))


def _text(root: Path, source: Path, name: str) -> str:
    with PlainProcess(source, 1, _CONTEXT) as plain:
        expected = plain.generate(PROMPT, TOKENS)["text"]
    return (
        "right text" if _in_a_world(root, name, PROMPT) == expected else "text that differs from llama.cpp's"
    )


def _in_a_world(root: Path, name: str, prompt: str | None) -> str:
    """Return what a secure world continues `prompt` with, or (None: it tries the model) how that ended."""
    try:
        with DrivenWorld(root / "store", root / "device.key", arguments=_OPTIONS) as world:
            if prompt is not None:
                return world.generate(name, prompt, TOKENS).text
            number = world._next()
            world._send(Try(number, name))
            world._take(Started | Failed, lambda m: m.request == number)  # type: ignore[arg-type]
            end: Finished | Failed = world._take(Finished | Failed, lambda m: m.request == number)  # type: ignore[arg-type]
            return end.failure.message if isinstance(end, Failed) else ""
    except FlexServeError as error:
        return error.message


def _one_line(text: str) -> str:
    shown = text.rpartition("/llama.cpp/")[2] if "/llama.cpp/" in text else text
    return " ".join(shown.replace("|", "/").split())[:160]


def main(arguments: Iterable[str]) -> None:
    """Write the document to the file that is named."""
    [path] = arguments
    Path(path).write_text(table(ARCHITECTURES))


if __name__ == "__main__":
    main(sys.argv[1:])
