"""Receipts that `flexserve connect` got: the last ones in memory, and each in a file of its own if asked."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import structlog

from flexserve.attestation.kept_receipt import KeptReceipt
from flexserve.normal.remote_world import Trust

_log = structlog.get_logger(__name__)
MOST = 1000  # requests whose receipts are in memory


class Receipts:
    """Keeps receipts by the name of the request; in `folder`, too, unless it is None. One event loop."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._kept: collections.OrderedDict[str, list[dict[str, Any]]] = collections.OrderedDict()

    def keep(self, name: str, signed: bytes, trust: Trust) -> None:
        """Keep a receipt, with what it takes to verify it later. Logs it when the disk refuses."""
        evidence = trust.evidence
        record = KeptReceipt(signed, evidence.chain, evidence.token, evidence.nonce).to_json()
        of_request = self._kept.setdefault(name, [])
        of_request.append(record)
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)
        if self._folder is not None:
            number = f"-{len(of_request)}" if len(of_request) > 1 else ""
            path = self._folder / f"{name}{number}.receipt"
            try:
                path.write_text(json.dumps(record, indent=1) + "\n")
            except OSError as error:
                _log.warning("receipt_not_kept", reason=error.strerror)

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return the receipts of a request."""
        return self._kept.get(name, [])
