"""The audit log: a file with a line of JSON for each request, whatever the level of the log.

It says who asked (the key's name, the address), for what (route and model) and what came of it; never what
was asked or answered.
"""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import structlog

from flexserve.errors import CallerError

_log = structlog.get_logger(__name__)


class AuditFile:
    """Appends to `path`, which is made for this user alone. Raises CallerError when it cannot be opened."""

    def __init__(self, path: Path) -> None:
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._file = os.open(path, flags, 0o600)
        except OSError as error:
            raise CallerError(
                f"The audit log {path} cannot be opened: {error.strerror}.",
                hint="Give another file with --audit-file, or make its folder.",
                code="audit_file_unusable",
            ) from None
        self._failed = False

    def record(self, event: str, **fields: object) -> None:
        """Append a line. One that cannot be written is missing, and the log says so the first time."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"at": now, "event": event, **fields}, ensure_ascii=False) + "\n"
        try:
            os.write(self._file, line.encode(errors="replace"))
            self._failed = False
        except OSError as error:
            if not self._failed:
                _log.error("audit_log_not_written", reason=os.strerror(error.errno or 0))
            self._failed = True

    def close(self) -> None:
        """Close the file. Always safe."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
