"""A server of its own for a measurement or a demonstration: started as a person would start it.

The kernel ends it with the thread that started it, whatever that one ends of.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from flexserve.errors import PeerError
from flexserve.platforms.linux import parent_death

FLEXSERVE = (sys.executable, "-m", "flexserve.cli")
_STOP_SECONDS = 20.0
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


def own_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which flexserve has its configuration and its models in `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEXSERVE_")}
    return {**kept, "XDG_CONFIG_HOME": str(folder / "config"), "XDG_DATA_HOME": str(folder / "data")}


class Served:
    """`flexserve serve`, or another `command`, on a free port from the start of a block to its end.

    Raises PeerError when it does not start. Leaving the block kills it if `stop` did not end it.
    """

    def __init__(
        self,
        environment: dict[str, str],
        log: Path,
        arguments: Sequence[str] = (),
        *,
        command: Sequence[str] = ("serve",),
    ) -> None:
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                parent_death.command(*FLEXSERVE, *command, "--port", "0", *arguments),
                env=environment,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                start_new_session=True,
            )
        self.greeting = self._greeting()
        found = _ADDRESS.search("\n".join(self.greeting))
        if found is None:
            self.close()
            raise PeerError("The server did not start.", hint=self._tail())
        self.port = int(found[1])

    @property
    def url(self) -> str:
        """Where it is to be asked."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process of its normal world."""
        return self._process.pid

    def stop(self) -> None:
        """Interrupt it, as Ctrl-C does. Raises PeerError unless it ends in good order."""
        self._process.send_signal(signal.SIGINT)
        try:
            status = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise PeerError("The server did not stop.", hint=self._tail()) from None
        if status != 0:
            raise PeerError(f"The server ended with status {status}.", hint=self._tail())

    def close(self) -> None:
        """Kill it if it still runs. Always safe."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _greeting(self) -> list[str]:
        """Return the three lines that it greets with; fewer when it ends before."""
        assert self._process.stdout is not None
        return [line.rstrip() for _, line in zip(range(3), self._process.stdout, strict=False)]

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-5:]
        return "\n".join(["Its log ends with:", *lines])
