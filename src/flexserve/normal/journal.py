"""Structured logs on standard error. Sizes, times, counts and codes; never prompts or answers."""

from __future__ import annotations

import logging
import os
import sys

import structlog


def configure(*, level: str = "info", json: bool | None = None) -> None:
    """Log at `level` and above, as JSON lines or for people (None: people if it is a terminal)."""
    if json is None:
        json = not sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # The HTTP server's own records quote exceptions, whose text may quote a client. Ours say more.
    http = logging.getLogger("uvicorn")
    http.handlers, http.propagate = [logging.NullHandler()], False


def go_silent() -> None:
    """Write nothing more anywhere: the terminal that showed it is gone, and writing to it fails."""
    with open(os.devnull, "w") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())


def configure_if_unset() -> None:
    """Log warnings only, unless somebody chose otherwise: a library must not chat on stdout."""
    if not structlog.is_configured():
        configure(level="warning")
