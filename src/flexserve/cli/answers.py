"""Answers as a person sees them: streamed, wrapped at words on a terminal, with what is known about them."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from flexserve.cli import terminal
from flexserve.errors import CallerError
from flexserve.units import format_size

if TYPE_CHECKING:
    from flexserve.cli.worlds import Responder
    from flexserve.normal.reports import Ending
    from flexserve.protocol.prompts import ChatMessage
    from flexserve.protocol.sampling import Sampling

_FENCE = "```"
_NOTICED = 100.0  # milliseconds that a person notices


def stream(
    who: Responder,
    model: str,
    messages: list[ChatMessage],
    sampling: Sampling,
    *,
    said: list[str],
) -> Ending:
    """Print the answer as it comes, put its pieces into `said`, and return its ending.

    What the model thinks is shown, dimmed, on a terminal only.
    """
    from flexserve.normal.reports import Ending

    shown = _Screen() if sys.stdout.isatty() else _Pipe()
    with contextlib.closing(who.ask(model, messages, sampling)) as pieces, _waiting() as answered:
        for piece in pieces:
            answered()
            if isinstance(piece, Ending):
                shown.end()
                return piece
            if isinstance(piece, str):
                said.append(piece)
                shown.say(piece)
            else:
                shown.think(piece.text)
    raise AssertionError("an answer ends with an Ending or an error")


class _Pipe:
    """Standard output that is no terminal: the answer as it is, and nothing else."""

    def say(self, text: str) -> None:
        typer.echo(text, nl=False)
        sys.stdout.flush()

    def think(self, text: str) -> None:
        """Leave it out."""

    def end(self) -> None:
        typer.echo()


class _Screen(_Pipe):
    """A terminal: what the model thinks is dimmed, lines end between words."""

    def __init__(self) -> None:
        self._wrap = self._new_wrap()
        self._thinking = False

    def say(self, text: str) -> None:
        if self._thinking:
            self._turn(thinking=False)
        super().say(self._wrap.feed(terminal.printable(text)))

    def think(self, text: str) -> None:
        if not self._thinking:
            self._turn(thinking=True)
        typer.secho(self._wrap.feed(terminal.printable(text)), dim=True, nl=False)
        sys.stdout.flush()

    def end(self) -> None:
        typer.secho(self._wrap.rest(), dim=self._thinking)

    def _turn(self, *, thinking: bool) -> None:
        """Begin to show what is thought, or what is said after that."""
        typer.secho(self._wrap.rest(), dim=self._thinking, nl=False)
        if self._thinking:
            typer.echo("\n")
        self._thinking, self._wrap = thinking, self._new_wrap()

    @staticmethod
    def _new_wrap() -> WordWrap:
        return WordWrap(shutil.get_terminal_size().columns)


def whole(who: Responder, model: str, messages: list[ChatMessage], sampling: Sampling) -> dict[str, Any]:
    """Return the answer with everything known about it."""
    import msgspec

    from flexserve.normal.reports import Ending
    from flexserve.protocol.answer_parts import Thought

    with contextlib.closing(who.ask(model, messages, sampling)) as pieces:
        *parts, ending = pieces
    assert isinstance(ending, Ending)
    thought = "".join(part.text for part in parts if isinstance(part, Thought))
    return {
        "model": model,
        "answer": "".join(part for part in parts if isinstance(part, str)),
        **({"reasoning": thought} if thought else {}),
        "finish_reason": ending.reason,
        "usage": msgspec.to_builtins(ending.usage),
        "timings_ms": msgspec.to_builtins(ending.timings),
        "protection": msgspec.to_builtins(who.protection()),
        "answered_by": who.place,
    }


@contextlib.contextmanager
def _waiting() -> Iterator[Any]:
    """Show on a terminal that the first token is being waited for; the value ends that."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield lambda: None
        return
    from rich.console import Console

    status = Console(stderr=True).status("thinking")
    with status:
        yield status.stop


class WordWrap:
    """Breaks a text, which comes in pieces, between words. Code between ``` stays as it is.

    The last word is held back until it is known to be whole.
    """

    def __init__(self, columns: int) -> None:
        """`columns`: of the terminal."""
        self._columns = columns
        self._column = 0
        self._gap = self._word = ""
        self._code = False

    def feed(self, text: str) -> str:
        """Return what can be printed now that `text` came."""
        from prompt_toolkit.utils import get_cwidth

        shown = []
        for char in text:
            if char == "\n":
                shown.append(self.rest() + char)
                self._column, self._gap = 0, ""
            elif char == " ":
                shown.append(self.rest())
                self._gap += char
            else:
                self._word += char
                if get_cwidth(char) > 1:  # a line may end behind each of them
                    shown.append(self.rest())
        return "".join(shown)

    def rest(self) -> str:
        """Return the word that was held back, where it belongs."""
        from prompt_toolkit.utils import get_cwidth

        if not self._word:
            return ""
        if self._column == 0 and self._word.startswith(_FENCE):
            self._code = not self._code
        width = get_cwidth(self._word)
        fits = self._column + len(self._gap) + width <= self._columns
        if fits or self._code or self._column == 0:
            shown = self._gap + self._word
            self._column += len(self._gap) + width
        else:
            shown = "\n" + self._word
            self._column = width
        self._gap = self._word = ""
        return shown


def told(ending: Ending) -> str:
    """Return what is known of an answer that ended, in a line."""
    usage, times = ending.usage, ending.timings
    parts = [
        f"prompt {usage.prompt_tokens} tokens ({usage.cached_tokens} cached)",
        f"answer {usage.completion_tokens} tokens ({ending.reason})",
        f"first token after {times.ttft:.0f} ms",
    ]
    if times.queue >= _NOTICED:
        parts.append(f"of which {times.queue:.0f} ms in the queue")
    if times.decode > 0:
        parts.append(f"{1000 * usage.completion_tokens / times.decode:.1f} tokens/s")
    if times.restored_bytes:
        parts.append(f"restored {format_size(times.restored_bytes)} (waited {times.restore:.0f} ms)")
    if times.npu_products:
        parts.append(f"{times.npu_products} products on the NPU")
    return ", ".join(parts)


def checked(text: str) -> str:
    """Return the prompt `text`. Raises CallerError when it cannot be one."""
    from flexserve.protocol.bounds import MAX_TEXT

    if not text.strip():
        raise CallerError("The prompt is empty.", hint="Give one, or pipe one in.")
    if len(text) > MAX_TEXT:
        raise CallerError(f"The prompt is longer than {MAX_TEXT} characters.", hint="Shorten it.")
    if any("\ud800" <= char <= "\udfff" for char in text):  # how Python holds bytes that are not UTF-8
        raise CallerError("The prompt is not UTF-8 text.", hint="Convert it with iconv.")
    return text
