"""A server that a measurement starts ends with the measurement."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from flexserve.testing.processes import ends, is_gone

MEASUREMENT = """
import os, sys, time
from pathlib import Path
from flexserve.harness import served
served.FLEXSERVE = ("sh", "-c", "echo http://127.0.0.1:1; echo; echo; exec sleep 600")
with served.Served(dict(os.environ), Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


def test_a_measurement_that_is_told_to_end_leaves_no_server(tmp_path: Path) -> None:
    words = [sys.executable, "-c", MEASUREMENT, str(tmp_path / "log")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as measurement:
        assert measurement.stdout is not None
        server = int(measurement.stdout.readline())
        assert not is_gone(server)
        measurement.send_signal(signal.SIGTERM)
        assert ends(server)
