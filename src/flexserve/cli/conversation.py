"""A chat at the terminal: the turns so far, and the commands that change them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from flexserve.cli import terminal
from flexserve.cli.answers import checked, stream, told
from flexserve.errors import CallerError, FlexServeError

if TYPE_CHECKING:
    from flexserve.cli.worlds import Responder
    from flexserve.protocol.prompts import ChatMessage
    from flexserve.protocol.sampling import Sampling

COMMANDS = {
    "/help": "this",
    "/clear": "forget the conversation",
    "/set": "show what is set; /set system TEXT, temperature, top_p, max_tokens or seed VALUE sets it",
    "/model": "show the models; /model NAME goes on with another",
    "/save": "/save FILE writes the conversation to a file, in clear",
    "/load": "/load FILE goes on with a saved conversation",
    "/exit": "leave, as Ctrl-D does",
}
_KEYS = {'"""': 'begins a message of several lines, and """ ends it', "Ctrl-C": "stops the answer"}
_SETTINGS = ("temperature", "top_p", "max_tokens", "seed")
_MOST = 64 << 20  # bytes of a saved conversation
_FULL = "context_length_exceeded"


class Conversation:
    """A chat with a model. `messages` are its turns so far, and their only copy."""

    def __init__(self, who: Responder, model: str, sampling: Sampling, *, stats: bool) -> None:
        self.messages: list[ChatMessage] = []
        self.model = model
        self.sampling = sampling
        self._system = ""
        self._who = who
        self._stats = stats

    def hold(self, typed: Iterable[str]) -> None:
        """Answer what is typed, until the person leaves."""
        if sys.stdin.isatty():
            terminal.note(f"Chatting with {self.model}. /help says what else there is.")
        for text in typed:
            word, _, rest = text.strip().partition(" ")
            if word in ("/exit", "/quit", "/bye"):
                return
            try:
                if word.startswith("/"):
                    self._command(word, rest.strip())
                elif word:
                    self._answer(text)
            except FlexServeError as error:
                terminal.show_error(error)

    def _command(self, word: str, rest: str) -> None:
        commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/clear": self._clear,
            "/set": self._set,
            "/model": self._change_model,
            "/save": self._save,
            "/load": self._load,
        }
        if word not in commands:
            return terminal.note(f"There is no command {word}; /help lists them.")
        return commands[word](rest)

    def _help(self, _rest: str) -> None:
        for name, words in (COMMANDS | _KEYS).items():
            terminal.note(f"{name:7} {words}")

    def _clear(self, _rest: str) -> None:
        self.messages.clear()
        terminal.note("forgotten")

    def _set(self, rest: str) -> None:
        from flexserve.protocol.sampling import Sampling

        name, _, value = rest.partition(" ")
        if not name:
            terminal.note(f"system      {self._system or '(none)'}")
            for each in _SETTINGS:
                set_to = getattr(self.sampling, each)
                terminal.note(f"{each:11} {'(not set)' if set_to is None else set_to}")
        elif name == "system":
            self._system = checked(value) if value else ""
        elif name not in _SETTINGS:
            raise CallerError(f"{name!r} cannot be set.", hint=f"Set system, {', '.join(_SETTINGS)}.")
        else:
            known = {each: getattr(self.sampling, each) for each in Sampling.__struct_fields__}
            try:
                self.sampling = msgspec.convert(known | {name: json.loads(value)}, Sampling)
            except (ValueError, msgspec.ValidationError):
                raise CallerError(f"{value!r} is no value of {name}.") from None

    def _change_model(self, rest: str) -> None:
        names = self._who.models()
        if not rest:
            return terminal.note(", ".join(f"[{name}]" if name == self.model else name for name in names))
        if rest not in names:
            raise CallerError(f"There is no model named {rest!r}.", hint=f"There are: {', '.join(names)}.")
        self.model = rest
        return terminal.note(f"Chatting with {rest}, from here on.")

    def _save(self, rest: str) -> None:
        if not rest:
            raise CallerError("/save wants the name of a file.")
        saved = {"model": self.model, "messages": msgspec.to_builtins(self._turns())}
        path = Path(rest).expanduser()
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(saved, file, indent=2, ensure_ascii=False)
        except OSError as error:
            raise CallerError(f"{path} cannot be written: {error.strerror}.") from None
        terminal.note(f"saved to {path}, in clear")

    def _load(self, rest: str) -> None:
        from flexserve.protocol.prompts import ChatMessage

        path = Path(rest).expanduser()
        try:
            with path.open("rb") as file:
                saved = msgspec.json.decode(file.read(_MOST))
            found = msgspec.convert(saved["messages"], list[ChatMessage])
        except OSError as error:
            raise CallerError(f"{path} cannot be read: {error.strerror}.") from None
        except (msgspec.MsgspecError, KeyError, TypeError, UnicodeDecodeError):
            raise CallerError(f"{path} holds no conversation.", hint="/save writes one.") from None
        self._system = "".join(turn.content for turn in found if turn.role == "system")
        self.messages = [turn for turn in found if turn.role != "system"]
        terminal.note(f"{len(self.messages)} turns")

    def _turns(self) -> list[ChatMessage]:
        from flexserve.protocol.prompts import ChatMessage

        return [ChatMessage("system", self._system)] * bool(self._system) + self.messages

    def _answer(self, text: str) -> None:
        """Answer `text`. An error takes it back; an interruption keeps what was said."""
        from flexserve.protocol.prompts import ChatMessage

        said: list[str] = []
        self.messages.append(ChatMessage("user", checked(text)))
        try:
            self._stream(said)
        except KeyboardInterrupt:
            terminal.note("\n(stopped)")
        except BaseException:
            self.messages.pop()
            raise
        if said:
            self.messages.append(ChatMessage("assistant", "".join(said)))
        else:
            self.messages.pop()

    def _stream(self, said: list[str]) -> None:
        """Show the answer to the turns so far; the oldest make way when the context is full."""
        while True:
            try:
                ending = stream(self._who, self.model, self._turns(), self.sampling, said=said)
            except FlexServeError as error:
                if error.code != _FULL or not self._drop_oldest():
                    raise
                continue
            if self._stats:
                terminal.note(told(ending))
            return

    def _drop_oldest(self) -> bool:
        """Forget the oldest question and what was said up to the next; False: there is one only."""
        questions = [at for at, turn in enumerate(self.messages) if turn.role == "user"]
        if len(questions) < 2:
            return False
        del self.messages[: questions[1]]
        terminal.note("(the context is full: the oldest question and its answer are forgotten)")
        return True
