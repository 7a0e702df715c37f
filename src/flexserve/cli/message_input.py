"""What a person types, message by message: edited at a terminal, a line each from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from flexserve.cli import terminal

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

_QUOTES = '"""'

ReadLine = Callable[[str], str]  # given the prompt to show; raises EOFError and KeyboardInterrupt


def messages_of_terminal() -> Iterator[str]:
    """Yield what is typed, or comes through standard input, until it ends."""
    return messages(line_editor() if sys.stdin.isatty() else lambda _prompt: input())


def messages(read: ReadLine) -> Iterator[str]:
    '''Yield messages of one line each, or of all lines between """ and """. Ctrl-C drops what is typed.'''
    while True:
        try:
            line = read("> ")
            if line.startswith(_QUOTES):
                line = _quoted(line.removeprefix(_QUOTES), read)
        except EOFError:
            return
        except KeyboardInterrupt:
            terminal.note("(Ctrl-D or /exit leaves)")
            continue
        yield line


def _quoted(line: str, read: ReadLine) -> str:
    """Return the lines up to the closing quotes; what ends without them ends there."""
    lines = []
    while not line.rstrip().endswith(_QUOTES):
        lines.append(line)
        try:
            line = read("… ")
        except EOFError:
            return "\n".join(lines).strip("\n")
    lines.append(line.rstrip().removesuffix(_QUOTES))
    return "\n".join(lines).strip("\n")


def line_editor(source: Input | None = None, target: Output | None = None) -> ReadLine:
    """Return a line editor on the terminal, or on `source` and `target`.

    What is pasted is one message, however many lines it has. The history is in memory only.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.output import create_output

    from flexserve.cli.conversation import COMMANDS

    session: PromptSession[Any] = PromptSession(
        history=InMemoryHistory(),
        completer=WordCompleter(sorted(COMMANDS), sentence=True),
        complete_while_typing=False,
        input=source,
        output=target or create_output(stdout=sys.stderr),  # standard output is for answers
    )
    return session.prompt
