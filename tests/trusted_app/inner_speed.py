"""How fast the secure world inside the machine is: `python tests/trusted_app/inner_speed.py [ROUNDS]`.

On a quiet host, after `make trusted-app`. Emulated: it says how the emulator does. A round boots a machine
and asks the demo's model at S-EL0, with one thread and with two. It asks the same file under qemu-aarch64.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from inner_application import MODEL, QUESTION, ROOT, Application, provide
from inner_models import Opened
from test_inner_on_a_machine import CHUNKS, RAM, AtSEl0

from flexserve.emulator import trusted_app
from flexserve.harness.inner import SealedFile
from flexserve.tee_client.messages import Ask, Finish
from flexserve.testing.machines import booted
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.sealing import seal_file

MOST = 100  # tokens; the answer is shorter
CPUS = 2


def main(rounds: int) -> None:
    """Print each round, and the medians."""
    programs = trusted_app.built(trusted_app.default_cache())
    if programs is None or shutil.which("qemu-aarch64") is None:
        sys.exit("The trusted application is not built of these sources. Run `make trusted-app`.")
    device, found = DeviceKey(ROOT), dict[str, list[float]]()
    with tempfile.TemporaryDirectory() as folder:
        seal_file(MODEL, path := Path(folder) / "tiny.flex", "tiny", device, lambda _done, _total: None)
        sealed = SealedFile.read(path, device)
        for _ in range(rounds):
            for threads in (1, 2):
                began = time.perf_counter()
                with booted(RAM, CPUS, application=programs.application, secret=ROOT) as machine:
                    app: Application = AtSEl0(machine, threads=threads)
                    app.do(Ask.GRANT, CHUNKS)
                    app.do(Ask.HEAP, CHUNKS // 2, 1)
                    first, rate = _timed(app, sealed)
                    found.setdefault("boot to first token, s", []).append(first - began)
                    found.setdefault(f"S-EL0, threads: {threads}, tokens/s", []).append(rate)
                app = Application(
                    ["qemu-aarch64", "-cpu", "cortex-a76", programs.application], threads=threads
                )
                try:
                    provide(app)
                    _, rate = _timed(app, sealed)
                    found.setdefault(f"qemu-user, threads: {threads}, tokens/s", []).append(rate)
                finally:
                    app.end()
            print("  ".join(f"{name} {values[-1]:.1f}" for name, values in found.items()), flush=True)
    for name, values in found.items():
        print(f"{name}: median {statistics.median(values):.1f}, {min(values):.1f} to {max(values):.1f}")


def _timed(app: Application, sealed: SealedFile) -> tuple[float, float]:
    """Return when the first token was there, and how many more there were a second."""
    model = Opened(app, sealed)
    model.write()
    model.begin(model.tokenise(QUESTION), most=MOST)
    model.step(0)
    first = time.perf_counter()
    more = 1
    while model.step(0)[0].finished is Finish.NO:
        more += 1
    return first, more / (time.perf_counter() - first)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
