"""Roots that were pinned at first use: `ADDRESS PUBLIC-KEY` in a line, for each server, of a private file."""

from __future__ import annotations

import os
from pathlib import Path

from flexserve.attestation.verification import AttestationRefusedError
from flexserve.errors import NormalWorldError


class KnownRoots:
    """The roots in the file `path`, which need not exist."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def require(self, address: str, root: bytes) -> bool:
        """Return whether the server at `address` is seen for the first time; its root is kept then.

        Raises AttestationRefusedError when it had another root before, NormalWorldError for a bad disk.
        """
        try:
            known = self._read().get(address)
            if known is None:
                self._add(address, root.hex())
        except OSError as error:
            raise NormalWorldError(
                f"{self._path} cannot be used: {error.strerror}.", hint="Check its permissions."
            ) from None
        if known not in (None, root.hex()):
            raise AttestationRefusedError(
                "root",
                f"{known}, as at first use",
                root.hex(),
                f"If the server was set up anew, remove the line of {address} from {self._path}.",
            )
        return known is None

    def _read(self) -> dict[str, str]:
        if not self._path.exists():
            return {}
        lines = self._path.read_text(errors="replace").splitlines()
        return {address: root for address, _, root in (line.rpartition(" ") for line in lines) if address}

    def _add(self, address: str, root: str) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w") as file:
            file.write(f"{address} {root}\n")
