"""The device's process: `python -m flexserve.emulator.npu --ram-fd N --ram-bytes N`."""

from __future__ import annotations

import argparse
import mmap
import os
import signal


def main() -> None:
    """Serve until a signal. Exits with a message when RAM is not what was said."""
    parser = argparse.ArgumentParser(prog="flexserve-npu", description=__doc__)
    parser.add_argument("--ram-fd", type=int, required=True, help="descriptor of the machine's RAM")
    parser.add_argument("--ram-bytes", type=int, required=True, help="its size")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that compute")
    chosen = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Our own threads each take a part; a library's would spin for the next product, and QEMU's CPUs wait.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

    from flexserve.emulator.npu.device import Device
    from flexserve.platforms.trustzone.ram import BASE

    try:
        memory = mmap.mmap(chosen.ram_fd, chosen.ram_bytes)
    except (OSError, ValueError) as error:
        parser.exit(1, f"The machine's RAM cannot be mapped: {error}.\n")
    Device(memoryview(memory), BASE, threads=max(1, chosen.threads)).serve()


if __name__ == "__main__":
    main()
