"""The secure process's side of its helper: jobs go there, answers come back, in any order."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable
from typing import Any

from flexserve.errors import CallerError, FlexServeError, InternalError, StoredDataError
from flexserve.protocol.schema import refuse
from flexserve.trusted.sidecar import Sidecar
from flexserve.trusted.text.rendering.compiling import reason
from flexserve.trusted.text.rendering.jobs import Answer, Frames, Job, Outcome, Ready, Result, encode

_PATIENCE = 30.0  # seconds; the helper answers within its own limits, on a busy machine somewhat later
_RECEIVE = 1 << 18
_MOST_COMPILED = 1024


class Renderer:
    """Has templates rendered and grammars compiled in a process of their own. Thread-safe.

    The `helper` is a program (trusted.sidecar.start_helper): start it before the process has anything to hide
    and before it confines itself. A thread is started with the first job. `on_end` is called when the helper
    is gone.
    """

    def __init__(self, helper: Sidecar, on_end: Callable[[], None] = lambda: None) -> None:
        self._on_end = on_end
        self._helper, self._socket = helper, helper.socket
        self.pid = helper.pid
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._serial = 0
        self._results: dict[int, Result | None] = {}  # of jobs that are waited for
        self._compiled: set[bytes] = set()  # digests of grammars that are known to compile
        self._gone = self._closed = False
        self._ready = False
        self._reader: threading.Thread | None = None

    def wait_until_ready(self) -> str:
        """Wait for the helper to confine itself: this process may take files away from under it then.

        Returns why it is not alone in a namespace of processes ("": it is). Raises InternalError when it
        cannot be started.
        """
        frames, said = Frames(Ready), list[Ready]()
        self._socket.settimeout(_PATIENCE)
        with contextlib.suppress(OSError, ValueError):
            while not said and (data := self._socket.recv(_RECEIVE)):
                said = frames.feed(data)
        self._socket.settimeout(None)
        if not said:
            raise InternalError("The secure world's helper does not start.", hint="Install flexserve again.")
        self._ready = True
        return said[0].not_alone

    def look(self, source: str) -> Result:
        """Return what template `source` has a use for. Raises StoredDataError and CallerError."""
        return self._template(Job(0, source))

    def render(self, source: str, values: dict[str, Any]) -> str:
        """Return what template `source` makes of `values`.

        Raises CallerError when the template refuses the conversation, or takes too much time or memory
        for it, StoredDataError when the template is wrong. Neither quotes the conversation.
        """
        return self._template(Job(0, source, values)).text

    def compile(self, grammar: str) -> None:
        """Raise CallerError for a grammar that cannot be compiled within limits."""
        digest = hashlib.sha256(grammar.encode()).digest()
        if digest in self._compiled:
            return
        result = self._ask(Job(0, grammar=grammar))
        if result.outcome is Outcome.BUSY:
            raise _busy()
        if result.outcome is not Outcome.DONE:
            refuse(
                "it takes too much time or memory"
                if result.outcome is Outcome.LIMITS
                else reason(result.text)
            )

    def translate(self, gbnf: str) -> str:
        """Return a grammar of llama.cpp as rules for `compile`, of which the first is "answer".

        Raises CallerError (code "grammar_unsupported") for what is none, or takes too much time or memory.
        """
        result = self._ask(Job(0, gbnf=gbnf))
        if result.outcome is Outcome.BUSY:
            raise _busy()
        if result.outcome is not Outcome.DONE:
            why = "it takes too much time or memory" if result.outcome is Outcome.LIMITS else result.text
            raise CallerError(
                f"The grammar cannot be followed: {why}.",
                hint="Correct or simplify it; grammars/README.md of llama.cpp says how they are written.",
                code="grammar_unsupported",
            )
        return result.text

    def close(self) -> None:
        """End the helper. Always safe."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._helper.wait()

    def _template(self, job: Job) -> Result:
        result = self._ask(job)
        match result.outcome:
            case Outcome.DONE:
                return result
            case Outcome.BUSY:
                raise _busy()
            case Outcome.REFUSED:
                words = f": {result.text.rstrip('.')}" if result.text else ""
                raise CallerError(
                    f"The model's chat template refuses this conversation{words}.",
                    hint="Check the order of roles: most templates want user and assistant in turn.",
                    code="chat_template_refuses",
                )
            case Outcome.LIMITS:
                raise CallerError(
                    "The model's chat template takes too much time or memory for this conversation.",
                    hint="Shorten the conversation, or use /v1/completions.",
                    code="chat_template_limits",
                )
        raise StoredDataError(
            f"The model's chat template does not work ({result.text}).",
            hint="Use /v1/completions, or a model file with a sound template.",
            code="chat_template_bad",
        )

    def _ask(self, job: Job) -> Result:
        with self._changed:
            self._serial += 1
            job.serial = self._serial
            self._results[job.serial] = None
            if not self._ready:
                self.wait_until_ready()
            if self._reader is None:
                self._reader = threading.Thread(target=self._read, name="renderer", daemon=True)
                self._reader.start()
        try:
            with self._sending:
                self._socket.sendall(encode(job))
            with self._changed:
                self._changed.wait_for(lambda: self._gone or self._results[job.serial] is not None, _PATIENCE)
                result = self._results[job.serial]
        except OSError:
            result = None
        finally:
            with self._changed:
                self._results.pop(job.serial)
        if result is None:
            raise InternalError("The secure world's helper does not answer.", hint="Try again.")
        return result

    def _read(self) -> None:
        frames = Frames(Answer)
        with contextlib.suppress(OSError, ValueError):
            while data := self._socket.recv(_RECEIVE):
                for answer in frames.feed(data):
                    with self._changed:
                        if answer.serial in self._results:
                            self._results[answer.serial] = answer.result
                            self._changed.notify_all()
        with self._changed:
            self._gone = True
            self._changed.notify_all()
        if not self._closed:
            self._on_end()


def _busy() -> FlexServeError:
    return CallerError(
        "Too many conversations are being prepared.", hint="Try again in a moment.", code="queue_full"
    )
