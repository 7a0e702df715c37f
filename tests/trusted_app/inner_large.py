"""Half a billion weights at S-EL0, under pressure: `python tests/trusted_app/inner_large.py [SHAPE THREADS]`.

After `make trusted-app`. The weights are random (flexserve.harness.synth). The model is written, answers, and
answers again while a program of the guest fills its memory: as much as the guest's shrinker asks for, weights
are evicted and given back, in parts, and loaded again before they are needed. This script decides how much,
as policy/ does for a server. Emulated: figures say how the emulator does. On a host whose cores are busy one
thread is quicker: two wait for each other by spinning.
"""

from __future__ import annotations

import argparse
import secrets
import struct
import sys
import tempfile
import time
from pathlib import Path

from flexserve.emulator import trusted_app
from flexserve.emulator.build import build
from flexserve.emulator.machine import Machine
from flexserve.harness.inner import WEIGHTS, Application, Model, SealedFile
from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic
from flexserve.tee_client.messages import Ask, Finish, unpacked
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.sealing import seal_file
from flexserve.units import GIB, MIB

RAM, CPUS = GIB + 512 * MIB, 2
CHUNK, HEAP = 2 * MIB, 60  # of these chunks the vocabulary, for the most part
TOKENS, PART = 5, 16  # said; chunks recalled at once, at most
PAGES = 512  # of a chunk
LARGEST = 64  # chunks of the largest weight, which lies twice in memory while it is written
PROMPT = "Kato bime."
HOG, HOG_SECONDS = 60, 120  # percent of RAM
PAUSE = 1.0  # seconds between two steps, for the program to ask for memory


def main(shape: str, threads: int) -> None:
    """Print what happened."""
    programs = trusted_app.built(trusted_app.default_cache())
    if programs is None:
        sys.exit("The trusted application is not built of these sources. Run `make trusted-app`.")
    root = secrets.token_bytes(32)
    with tempfile.TemporaryDirectory() as folder:
        sealed = _sealed(Path(folder), shape, root)
        images = build(
            trusted_app.default_cache(),
            ram_bytes=RAM,
            cpus=CPUS,
            progress=_say,
            application=programs.application,
        )
        with Machine(images, ram_bytes=RAM, cpus=CPUS, secret=root) as machine:
            _run(machine, sealed, threads)


def _sealed(folder: Path, shape: str, root: bytes) -> SealedFile:
    source, device = folder / "source.gguf", DeviceKey(root)
    write_synthetic(source, SHAPES[shape], "q4_0")
    _say(f"{shape}, q4_0: {source.stat().st_size / MIB:.0f} MiB")
    seal_file(source, folder / "model.flex", "model", device, lambda _done, _total: None)
    source.unlink()
    return SealedFile.read(folder / "model.flex", device)


def _run(machine: Machine, sealed: SealedFile, threads: int) -> None:
    app = Application.of(machine, threads=threads, patience=600)
    began = time.monotonic()
    app.do(Ask.GRANT, HEAP)
    app.do(Ask.HEAP, HEAP, 1)
    model = Model(app, sealed, context=256)
    needed = model.chunks + model.kv_chunks + model.scratch_chunks + PART
    app.do(Ask.GRANT, needed + LARGEST)
    _check(machine)
    model.write()
    app.do(Ask.GIVE_BACK, LARGEST)
    _say(f"opened and written in {time.monotonic() - began:.1f} s: {model.chunks} chunks of weights")
    first = model.chunks - PART  # the last ones may go
    replies = [model.do(Ask.SEAL, number) for number in range(first, model.chunks)]
    model.do(Ask.IMAGE, payload=struct.pack("<4Q", *replies[0].values[:4]))
    parts = {first + number: reply.payload for number, reply in enumerate(replies)}
    prompt = model.tokenise(PROMPT)
    said = _answered(model, prompt, "undisturbed")
    job = machine.agent.ask("start", "hog", str(HOG), str(HOG_SECONDS))["job"]
    recalled = _answered_under_pressure(machine, model, prompt, parts, said)
    machine.agent.ask("stop", str(job))
    _say(f"under pressure: the same; {recalled} chunks of {CHUNK // MIB} MiB went meanwhile, and came again")
    app.do(Ask.GRANT, PART)
    _load(model, parts)
    assert _answered(model, prompt, "afterwards") == said
    _check(machine)


def _answered(model: Model, prompt: list[int], when: str) -> list[int]:
    model.do(Ask.EVICT, 1, 0, 0)
    model.begin(prompt, most=TOKENS)
    began = time.monotonic()
    model.step()
    first = time.monotonic()
    said = model.finish()
    _say(
        f"{when}: {first - began:.1f} s to the first token, "
        f"then {(len(said) - 1) / (time.monotonic() - first):.2f} tokens/s"
    )
    return said


def _answered_under_pressure(
    machine: Machine, model: Model, prompt: list[int], parts: dict[int, bytes], said: list[int]
) -> int:
    """Answer, and between two steps give back what is asked for, and load what the next one needs."""
    model.do(Ask.EVICT, 1, 0, 0)
    model.begin(prompt, most=TOKENS)
    recalled, asked = 0, _asked(machine)
    while True:
        time.sleep(PAUSE)
        wanted, asked = _asked(machine) - asked, _asked(machine)
        if part := min(wanted // PAGES, PART):
            model.do(Ask.EVICT, WEIGHTS, model.chunks - part, model.chunks)
            recalled += model.app.do(Ask.GIVE_BACK, part).values[0]
            _check(machine)
        _load(model, parts)
        if model.step().finished is not Finish.NO:
            break
    assert unpacked(model.do(Ask.SAID, 0).payload) == said
    model.do(Ask.END, 0)
    return recalled


def _load(model: Model, parts: dict[int, bytes]) -> None:
    """Load what is not there, in memory that the OS is asked for when there is none."""
    for number, there in enumerate(model.do(Ask.RESIDENT).payload):
        if there:
            continue
        if not model.app.do(Ask.POOL).values[0]:
            model.app.do(Ask.GRANT, 1)
        model.do(Ask.LOAD, number, payload=parts[number])


def _asked(machine: Machine) -> int:
    """Return how many pages the guest's shrinker has asked for."""
    return int(machine.agent.ask("flexmem")["pressure_pages"])


def _check(machine: Machine) -> None:
    """Assert that memory is conserved."""
    assert sum(machine.monitor().pages.values()) == machine.ram_bytes


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="?", default="qwen2.5-0.5b")
    parser.add_argument("threads", nargs="?", type=int, default=CPUS)
    options = parser.parse_args()
    main(options.shape, options.threads)
