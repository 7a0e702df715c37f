"""Whom `run` and `chat` ask: a running server, or two worlds started for one command.

Both answer the same questions in the same way. The private world lives on an event loop in a
thread of its own, so that the terminal's thread can wait for a person, or be interrupted, while
the memory broker keeps answering the secure world.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from flexserve.cli.machine import core_for
from flexserve.errors import CallerError, InternalError, UnknownModelError
from flexserve.normal.address import NoServerError
from flexserve.normal.api.parts import Part, Parts, Said, Thought
from flexserve.normal.reports import Answer, Ending, Protection
from flexserve.protocol.answers import Delta, Finished, Started
from flexserve.protocol.prompts import ChatMessage, ChatPrompt
from flexserve.protocol.sampling import Sampling

if TYPE_CHECKING:
    from pathlib import Path

    from flexserve.normal.answer import Answer as Messages
    from flexserve.normal.client import Client
    from flexserve.normal.guest import SecureCore
    from flexserve.normal.process import Started as EarlyWorld
    from flexserve.normal.world import World
    from flexserve.protocol.launch import SecureOptions
    from flexserve.settings import Settings

T = TypeVar("T")


class Responder(Protocol):
    """Answers conversations."""

    is_server: bool

    @property
    def place(self) -> str:
        """Where the answer is made, for people."""

    def protection(self) -> Protection:
        """Return the label of what protects it."""

    def models(self) -> list[str]:
        """Return the names of the models it has."""

    def has_template(self, model: str) -> bool | None:
        """Return whether a model brings a chat template; None when nobody knows."""

    def ask(self, model: str, messages: list[ChatMessage], sampling: Sampling) -> Answer:
        """Yield the answer as it comes, then its Ending. Closing it cancels the request."""


class ServerResponder:
    """A running server."""

    is_server = True

    def __init__(self, client: Client) -> None:
        self._client = client
        self._health = client.health()
        self.ask = client.ask

    @property
    def place(self) -> str:
        """The server's address."""
        return f"the server at {self._client.address}"

    def protection(self) -> Protection:
        """Return what the server says protects it."""
        return self._health.protection

    def models(self) -> list[str]:
        """Return the names of the server's models."""
        return [model.id for model in self._client.cards()]

    def has_template(self, model: str) -> bool | None:
        """Return what the server says."""
        found = (one.abilities for one in self._client.cards() if one.id == model)
        abilities = next(found, None)
        return None if abilities is None else abilities.template


class PrivateWorld:
    """The two worlds, for as long as the context lasts. Every method blocks its caller."""

    is_server = False
    place = "a secure world of this command's own"

    def __init__(
        self,
        options: SecureOptions,
        core: SecureCore | None = None,
        early: EarlyWorld | None = None,
        *,
        model_options: Path | None = None,
    ) -> None:
        """`early`: a secure world that waits for its options (normal.process.start_early).

        `model_options`: the file of how single models are served.
        """
        self._model_options = model_options
        self._options, self._core, self._early = options, core, early
        self._ready: concurrent.futures.Future[World] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="private-world", daemon=True)
        self._loop = asyncio.new_event_loop()
        self._life: asyncio.Task[None] | None = None
        self._ending = False

    def __enter__(self) -> Self:
        """Start the worlds. Raises what normal.world.running_world raises."""
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def protection(self) -> Protection:
        """Return what the secure world says protects it."""
        label = self._world.protection
        return Protection(label.name, label.protected, label.summary)

    def models(self) -> list[str]:
        """Return the names of the store's models."""
        return [model.name for model in self._wait(self._world.models())]

    def has_template(self, model: str) -> bool | None:
        """Return what the store's record says."""
        found = (one.abilities for one in self._wait(self._world.models()) if one.name == model)
        abilities = next(found, None)
        return None if abilities is None else abilities.template

    def ask(self, model: str, messages: list[ChatMessage], sampling: Sampling) -> Answer:
        """Yield the answer as it comes, then its Ending. Closing it cancels the request."""
        answer = self._wait(self._world.generate(model, ChatPrompt(messages), sampling))
        try:
            yield from self._read(answer)
        finally:
            self._loop.call_soon_threadsafe(answer.abandon)

    def _read(self, answer: Messages) -> Answer:
        parts = Parts(most_calls=0)
        while True:
            message = self._wait(answer.__anext__())
            if isinstance(message, Started):
                parts.began(message)
            elif isinstance(message, Delta):
                yield from _pieces(parts.feed(message.text))
            elif isinstance(message, Finished):
                yield from _pieces(parts.finish())
                yield Ending(message.reason, message.usage, message.timings)
                return

    @property
    def _world(self) -> World:
        return self._ready.result()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _end(self) -> None:
        # Either the loop's thread sees the flag, or this one sees the task: it never lives on.
        self._ending = True
        if self._life is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it ended by itself
                self._loop.call_soon_threadsafe(self._life.cancel)
        self._thread.join()

    def _run(self) -> None:
        runner = asyncio.Runner(loop_factory=lambda: self._loop)
        with runner, contextlib.suppress(asyncio.CancelledError):
            runner.run(self._live())
        if not self._ready.done():
            self._ready.set_exception(InternalError("The secure world ended while it started."))

    async def _live(self) -> None:
        from flexserve.normal.model_options import ModelChoices
        from flexserve.normal.world import running_world

        self._life = asyncio.current_task()
        if self._ending:
            return
        try:
            running = running_world(
                self._options,
                drain=0,
                choices=ModelChoices(self._model_options),
                core=self._core,
                early=self._early,
            )
            async with running as world:
                self._ready.set_result(world)
                await asyncio.Event().wait()
        except Exception as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)


def _pieces(parts: list[Part]) -> Iterator[str | Thought]:
    for part in parts:
        if isinstance(part, Said):
            yield part.text
        elif isinstance(part, Thought):
            yield part


@contextlib.contextmanager
def responder(
    settings: Settings, early: EarlyWorld | None, model: str | None, *, named: bool = False
) -> Iterator[Responder]:
    """Yield the configured server if one answers, else worlds started for this block.

    `model`: what is to be asked; None: the only one that there is.
    `early`: a secure world that waits for its options; ended here when none is needed.
    `named`: somebody said which server, so no other place will do: raises NoServerError when none answers.
    Raises PeerError when something that is no FlexServe server listens there: it gets no prompt;
    UnknownModelError where a machine would be booted for a model that the store does not have.
    """
    address = settings.address()
    if named or not address.is_silent():
        from flexserve.normal.client import Client

        with Client(address) as client:
            try:
                server = ServerResponder(client)
            except NoServerError:
                if named:
                    raise
                server = None
            if server is not None:
                begin(early, None)
                yield server
                return
    if settings.platform == "trustzone":  # before seconds or, the first time, minutes are spent on a machine
        stored = sorted(path.stem for path in (settings.models / "models").glob("*.flex"))
        require_known(model, stored)
    with core_for(settings) as core:
        options = settings.secure_options()
        early = begin(early, options if core is None else None)
        with PrivateWorld(options, core, early, model_options=settings.model_options) as world:
            yield world


def require_known(model: str | None, names: Sequence[str]) -> None:
    """Raise CallerError unless `model` is one of `names`; None: unless there is any."""
    if not names and model is None:
        raise CallerError(
            "There is no model yet.", hint="Get one with `flexserve pull`, or `flexserve add FILE.gguf`."
        )
    if model is not None and model not in names:
        shown = f"There are: {', '.join(names[:10])}." if names else "Get one with `flexserve pull`."
        raise UnknownModelError(f"There is no model named {model[:64]!r}.", hint=shown)


def begin(early: EarlyWorld | None, options: SecureOptions | None) -> EarlyWorld | None:
    """Have a secure world that was started early go on with `options`, and return it; None: end it.

    The sooner the better: it enters its sandbox while this process imports the rest.
    """
    if early is None:
        return None
    if options is None:
        early.discard()
        return None
    early.tell(options.words())
    return early
