"""A secure world driven directly, without HTTP: for measurements and for end-to-end tests.

Plays the smallest possible normal world: grants what is asked for (within `budget`), sends one
thing at a time and waits for its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from flexserve import interpreter
from flexserve.errors import Blame, PeerError, rebuild
from flexserve.normal.process import environment
from flexserve.platforms.linux import companion
from flexserve.protocol import framing
from flexserve.protocol.answers import Choice, Delta, Embedded, Failed, Finished, Started
from flexserve.protocol.evidence import Attest, Attested
from flexserve.protocol.launch import SECURE_WORLD, SecureOptions
from flexserve.protocol.memory import Grant, NeedMemory, Recall, Recalled, Returned, Spare, WantSpare
from flexserve.protocol.messages import (
    PROTOCOL_VERSION,
    Configure,
    Hello,
    Query,
    Shutdown,
    Status,
    ToNormal,
    Welcome,
)
from flexserve.protocol.model_options import ModelOptions
from flexserve.protocol.prompts import ChatMessage, ChatPrompt, Entry, TextPrompt, TokenPrompt
from flexserve.protocol.requests import Cancel, Embed, Generate, Try, Warm
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.sealed_messages import Sealed, SealedPart
from flexserve.protocol.statuses import Failure

M = TypeVar("M")
_PATIENCE = 300.0  # seconds
_LAST_WORDS = 10.0  # seconds


@dataclasses.dataclass(frozen=True, slots=True)
class Generated:
    """A finished generation; `choices` if log-probabilities were asked for."""

    text: str
    finished: Finished
    choices: list[Choice] = dataclasses.field(default_factory=list)


class DrivenWorld:
    """A real secure world process and its only client. A context manager; methods are thread-safe.

    `program`: the module that is run, and arguments of it that come before its options. It gets
    `variables` beside a secure world's own, and has a companion that keeps debuggers out unless
    `guarded` is off. `budget` bounds the bytes granted at any time (None: no bound); it may be changed, and
    so may `before_grant` and `after_recall`, which are called at those moments.
    """

    def __init__(
        self,
        options: SecureOptions,
        *,
        program: Sequence[str] = (SECURE_WORLD,),
        variables: Mapping[str, str] | None = None,
        budget: int | None = None,
        guarded: bool = True,
    ) -> None:
        self.budget = budget
        self.granted = 0
        began = time.monotonic()
        ours, theirs = socket.socketpair()
        with theirs:
            options = msgspec.structs.replace(options, channel_fd=theirs.fileno())
            command = interpreter.command(*program, *options.words())
            self._process = subprocess.Popen(
                companion.command(command) if guarded else command,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=options.fds,
                start_new_session=True,
                env=environment() | dict(variables or {}),
            )
        self._socket = ours
        self._decoder: framing.FrameDecoder[ToNormal] = framing.FrameDecoder(ToNormal)
        self._sending = threading.Lock()
        self._granting = threading.Lock()
        self.before_grant: Callable[[], None] = lambda: None
        self.after_recall: Callable[[], None] = lambda: None
        self._arrived = threading.Condition()
        self._inbox: list[ToNormal] = []
        self._listening = 0  # how many want each piece of text as it comes
        self._ended = False
        self._serial = 0
        self._send(Hello(PROTOCOL_VERSION))
        threading.Thread(target=self._receive, name="driven-world", daemon=True).start()
        self.welcome = self._take(Welcome, lambda _: True)
        self.start_seconds = time.monotonic() - began

    @property
    def pid(self) -> int:
        """Process id of the secure world."""
        return self.welcome.pid

    def generate(
        self, model: str, text: str, tokens: int, on_text: Callable[[str], None] | None = None
    ) -> Generated:
        """Continue `text` greedily by at most `tokens` tokens. Raises the world's own error."""
        return self.result(self.submit(model, TextPrompt(text), tokens), on_text)

    def chat(self, model: str, question: str, tokens: int) -> Generated:
        """Answer `question`, greedily, in at most `tokens` tokens. Raises the world's own error."""
        prompt = ChatPrompt([ChatMessage("user", question)])
        return self.result(self.submit(model, prompt, tokens))

    def submit(
        self,
        model: str,
        prompt: TextPrompt | TokenPrompt | ChatPrompt,
        tokens: int,
        *,
        reuse: bool = False,
        owner: str = "",
        next_model: str | None = None,
        keep_alive: float | None = None,
        logprobs: int | None = None,
    ) -> int:
        """Send a greedy request for at most `tokens` tokens; return its number for `result`.

        Its prompt is computed whole unless `reuse` is asked for: who measures wants no short cuts.
        `logprobs`: as in Sampling.
        """
        sampling = Sampling(max_tokens=tokens, temperature=0, logprobs=logprobs)
        more = {"owner": owner, "reuse": reuse, "next_model": next_model, "keep_alive": keep_alive}
        return self.ask(model, prompt, sampling, **more)

    def ask(
        self, model: str, prompt: TextPrompt | TokenPrompt | ChatPrompt, sampling: Sampling, **more: Any
    ) -> int:
        """Send a request; return its number for `result`. `more`: fields of Generate."""
        number = self._next()
        self._send(Generate(number, model, prompt, sampling, **({"reuse": False} | more)))
        return number

    def result(self, number: int, on_text: Callable[[str], None] | None = None) -> Generated:
        """Wait for the end of request `number`. Raises the world's own error."""
        parts: list[str] = []
        choices: list[Choice] = []
        self._listening += on_text is not None
        try:
            while True:
                message = self._take(object, lambda m: getattr(m, "request", None) == number)
                match message:
                    case Delta():
                        parts.append(message.text)
                        choices += message.choices
                        if on_text is not None:
                            on_text(message.text)
                    case Finished():
                        return Generated("".join(parts), message, choices)
                    case Failed():
                        raise _error(message.failure)
        finally:
            self._listening -= on_text is not None

    def cancel(self, number: int) -> None:
        """Ask for the end of request `number`, whose `result` says what came of it."""
        self._send(Cancel(number))

    def warm(self, model: str) -> Finished:
        """Bring all weights of `model` into memory; return what it took."""
        number = self._next()
        self._send(Warm(number, model))
        return self.result(number).finished

    def try_model(self, model: str) -> Finished:
        """Have `model` tried as `flexserve add` does; what it can do is in the store's record then.

        Raises the world's own error; PeerError when it died of the model.
        """
        number = self._next()
        self._send(Try(number, model))
        return self.result(number).finished

    def start_embedding(self, model: str, texts: Sequence[Entry], query: str | None = None) -> int:
        """Ask for the vectors of `texts`, or their ranks; return the request's number for `vectors`."""
        number = self._next()
        self._send(Embed(number, model, list(texts), query))
        return number

    def vectors(self, number: int) -> list[bytes]:
        """Wait for the end of request `number`; return its vectors, as Embedded has them.

        Raises the world's own error.
        """
        found: list[bytes] = []
        while True:
            match self._take(object, lambda m: getattr(m, "request", None) == number):
                case Embedded(vectors=vectors):
                    found += vectors
                case Finished():
                    return found
                case Failed(failure=failure):
                    raise _error(failure)

    def recall(self, demand: int | None, deadline: float = 10_000) -> Recalled:
        """Recall `demand` bytes (None: all that is idle) within `deadline` milliseconds.

        Like the real normal world, it grants nothing until it has taken note of the answer
        (`after_recall`).
        """
        number = self._next()
        with self._granting:
            self._send(Recall(number, demand, deadline))
            answer = self._take(Recalled, lambda m: m.serial == number)
            self.granted -= answer.returned
            self.after_recall()
        return answer

    def configure(self, models: Mapping[str, ModelOptions]) -> None:
        """Have these models served in these ways from when they are opened next, all others as usual."""
        self._send(Configure(dict(models)))

    def status(self) -> Status:
        """Return the secure world's own account."""
        number = self._next()
        self._send(Query(number))
        return self._take(Status, lambda m: m.serial == number)

    def attest(self, nonce: bytes) -> Attested:
        """Return the chain and the token that it answers with. Raises the world's own error."""
        number = self._next()
        self._send(Attest(number, nonce))
        said = self._take(Attested, lambda m: m.serial == number)
        if said.failure is not None:
            raise _error(said.failure)
        return said

    def sealed(self, body: bytes) -> list[bytes]:
        """Pass a sealed request on; return the parts of its sealed answer. Raises the world's own error."""
        number, parts = self._next(), []
        self._send(Sealed(number, body))
        while True:
            message = self._take(object, lambda m: getattr(m, "request", None) == number)
            if isinstance(message, Failed):
                raise _error(message.failure)
            if isinstance(message, SealedPart):
                parts.append(message.data)
                if message.last:
                    return parts

    def shut_down(self, drain: float) -> None:
        """Ask it to end; what runs may go on for `drain` seconds."""
        self._send(Shutdown(drain * 1000))

    def wait(self) -> int:
        """Wait until it has ended by itself; return its exit status."""
        return self._process.wait(_PATIENCE)

    def close(self) -> None:
        """Kill it. Always safe."""
        self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._socket.close()

    def __enter__(self) -> DrivenWorld:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self) -> int:
        with self._sending:
            self._serial += 1
            return self._serial

    def _send(self, message: msgspec.Struct) -> None:
        with self._sending:
            self._socket.sendall(framing.encode(message))

    def _receive(self) -> None:
        while data := self._read():
            for message in self._decoder.feed(data):
                match message:
                    case NeedMemory():
                        threading.Thread(target=self._grant, args=(message,), daemon=True).start()
                    case WantSpare():
                        threading.Thread(target=self._spare, args=(message,), daemon=True).start()
                    case Returned():
                        self.granted -= message.size  # only this thread and holders of _granting write it
                    case _:
                        with self._arrived:
                            self._inbox.append(message)
                            # Text that nobody waits for wakes nobody: it would take a core from
                            # the engine that is being measured.
                            if self._listening or not isinstance(message, Started | Delta):
                                self._arrived.notify_all()
        with self._arrived:
            self._ended = True
            self._arrived.notify_all()

    def _read(self) -> bytes:
        try:
            return self._socket.recv(1 << 16)
        except OSError:
            return b""

    def _grant(self, message: NeedMemory) -> None:
        self.before_grant()
        with self._granting:
            free = message.size if self.budget is None else max(0, self.budget - self.granted)
            size = min(message.size, free)
            self.granted += size
        self._answer(Grant(message.serial, size))

    def _spare(self, message: WantSpare) -> None:
        with self._granting:
            free = message.size if self.budget is None else max(0, self.budget - self.granted)
        self._answer(Spare(message.serial, min(message.size, free)))

    def _answer(self, message: Grant | Spare) -> None:
        """Send what the world waits for, unless it or this end of the channel is gone meanwhile."""
        with contextlib.suppress(OSError):
            self._send(message)

    def _take(self, kind: type[M], wanted: Callable[[M], bool]) -> M:
        """Wait for the first message of `kind` that is `wanted` and return it."""

        def find() -> M | None:
            for message in self._inbox:
                if isinstance(message, kind) and wanted(message):
                    self._inbox.remove(message)
                    return message
            return None

        found: M | None = None
        with self._arrived:
            deadline = time.monotonic() + _PATIENCE
            while (found := find()) is None and not self._ended:
                if not self._arrived.wait(deadline - time.monotonic()):
                    break
        if found is None:
            raise self._death()
        return found

    def _death(self) -> Exception:
        if self._ended:  # its end of the channel is closed: it is about to end by itself, and says how
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LAST_WORDS)
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        last = self._process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        try:
            return _error(msgspec.json.decode(last[0], type=Failure))
        except (IndexError, msgspec.MsgspecError):
            status = self._process.returncode
            return PeerError(
                f"The secure world ended with status {status}: {' '.join(last) or 'it said nothing'}",
                hint="See above.",
            )


def _error(failure: Failure) -> Exception:
    return rebuild(Blame(failure.blame), failure.code, failure.message, failure.hint, dict(failure.counts))
