"""How fast weights come from the guest's disk: `python …/inner_disk_speed.py [ROUNDS [SHAPE QUANT]]`.

On a quiet host, after `make trusted-app`. Emulated: it says how the emulator does. In one machine, the demo's
model, or a synthetic one, is loaded by the disk and by messages in turn.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from inner_application import MODEL, ROOT, Application
from inner_models import Opened
from test_inner_on_a_machine import AtSEl0

from flexserve.emulator import trusted_app
from flexserve.harness.inner import Image, SealedFile
from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic
from flexserve.platforms.trustzone.disk_image import SLOT, TAG, DiskImage, FileBlocks
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client.disk import Disk
from flexserve.tee_client.messages import Ask, Status
from flexserve.testing.machines import booted, guest_disk
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.sealing import seal_file
from flexserve.units import MIB

CPUS = 2
BESIDE = 256 * MIB  # for the guest and its kernel
HEAP = 40  # chunks: for a vocabulary of some thousand words


def main(rounds: int, gguf: Path, folder: Path) -> None:
    """Print each round, and the medians."""
    programs = trusted_app.built(trusted_app.default_cache())
    if programs is None or shutil.which("qemu-aarch64") is None:
        sys.exit("The trusted application is not built of these sources. Run `make trusted-app`.")
    path, store = folder / "sealed.flex", folder / "disk"
    seal_file(gguf, path, "tiny", DeviceKey(ROOT), lambda _done, _total: None)
    sealed = SealedFile.read(path, DeviceKey(ROOT))
    image = _image(programs, sealed)
    size = (2 * len(image.chunks) + 8) * SLOT
    with FileBlocks.create(store, size) as blocks:
        pieces = ((chunk[:-TAG], chunk[-TAG:]) for chunk in image.chunks)
        DiskImage.create(blocks, size).put("weights/it", image.salt, pieces)
    ram = -(-(BESIDE + (len(image.chunks) + HEAP + 40) * SLOT) // (64 * MIB)) * 64 * MIB
    found = dict[str, list[float]]()
    with booted(ram, CPUS, disks=[store], application=programs.application, secret=ROOT) as machine:
        app = AtSEl0(machine, threads=1)
        app.do(Ask.GRANT, HEAP)
        app.do(Ask.HEAP, HEAP, 1)
        disk = Disk(guest_disk(machine), app.link)
        model = Opened(app, sealed)
        model.do(Ask.IMAGE, payload=image.salt)
        print(f"{len(image.chunks)} chunks, {sum(map(len, image.chunks)) / MIB:.1f} MiB", flush=True)
        for _ in range(rounds):
            began = time.perf_counter()
            weights = disk.image.objects()["weights/it"]
            assert all(disk.load(weights, 0, chunk).status is Status.DONE for chunk in range(model.chunks))
            found.setdefault("disk", []).append(time.perf_counter() - began)
            _evict(model)
            began = time.perf_counter()
            app.do(Ask.GRANT, model.chunks)
            model.load(image)
            found.setdefault("messages", []).append(time.perf_counter() - began)
            _evict(model)
            print("  ".join(f"{name} {values[-1]:.2f} s" for name, values in found.items()), flush=True)
        print(machine.agent.ask("flexmem"))
    for name, values in found.items():
        print(f"{name}: median {statistics.median(values):.2f} s, {min(values):.2f} to {max(values):.2f}")
    ratios = [slow / fast for fast, slow in zip(found["disk"], found["messages"], strict=True)]
    print(f"messages/disk: median {statistics.median(ratios):.2f}")


def _image(programs: trusted_app.Programs, sealed: SealedFile) -> Image:
    app = Application(["qemu-aarch64", "-cpu", "cortex-a76", programs.application])
    try:
        app.do(Ask.SECRET, payload=ROOT)
        app.do(Ask.GRANT, 2 * sealed.manifest.size // SLOT + 64)
        model = Opened(app, sealed)
        model.write()
        return model.seal()
    finally:
        app.end()


def _evict(model: Opened) -> None:
    gone = model.do(Ask.EVICT, Kind.WEIGHTS, 0, model.chunks).values[0]
    assert model.app.do(Ask.GIVE_BACK, gone).values[0] == gone


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        gguf = MODEL
        if len(sys.argv) > 3:
            write_synthetic(gguf := Path(name) / "model.gguf", SHAPES[sys.argv[2]], sys.argv[3])
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, gguf, Path(name))
