"""Commands that talk to a model: run and chat. Neither writes a prompt or an answer to disk."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexserve.cli import terminal
from flexserve.cli.models import NO_TEMPLATE
from flexserve.cli.options import (
    AsJson,
    Context,
    DeviceKeyFile,
    GuestCpus,
    GuestMemory,
    Host,
    MemoryKind,
    ModelsFolder,
    Npu,
    Platform,
    Port,
    Threads,
    UnixSocket,
)
from flexserve.errors import CallerError, FlexServeError
from flexserve.units import format_size

if TYPE_CHECKING:
    from flexserve.cli.worlds import Responder
    from flexserve.normal.reports import Ending
    from flexserve.protocol.messages import ChatMessage
    from flexserve.protocol.sampling import Sampling

_CHAT_HELP = """\
/help   this
/clear  forget the conversation
/exit   leave, as Ctrl-D does
Ctrl-C  stop the answer"""

MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=1, max=1 << 20, help="Longest answer, in tokens.")
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", min=0, max=5, help="0: always the likeliest token [0.8].")
]
TopP = Annotated[float | None, typer.Option("--top-p", min=0, max=1, help="Nucleus sampling [0.95].")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, max=(1 << 63) - 1, help="Makes it repeatable.")]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("run", epilog='Example: flexserve run llama "Why is the sky blue?" --max-tokens 100')(run)
    app.command("chat", epilog="Example: flexserve chat llama")(chat)


def run(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help="A model's name.")],
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", show_default=False, help="- or nothing: standard input."),
    ] = None,
    *,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; repeatable.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Show tokens and times on standard error.")] = False,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    platform: Platform = None,
    guest_memory: GuestMemory = None,
    guest_cpus: GuestCpus = None,
    npu: Npu = None,
    memory: MemoryKind = None,
    threads: Threads = None,
    context: Context = None,
    models: ModelsFolder = None,
    device_key: DeviceKeyFile = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say who answers.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask a model once.

    A running server answers if there is one, else a secure world started for this command.
    """
    from flexserve import settings
    from flexserve.cli.worlds import responder
    from flexserve.protocol.messages import ChatMessage

    _refuse_file(model)
    sampling = _sampling(max_tokens, temperature, top_p, seed, stop)
    chosen = settings.load(
        host=host,
        port=port,
        unix_socket=unix_socket,
        platform=platform,
        guest_memory=guest_memory,
        guest_cpus=guest_cpus,
        npu=npu,
        memory=memory,
        threads=threads,
        context=context,
        models=models,
        device_key=device_key,
    )
    messages = [ChatMessage("user", _prompt(prompt))]
    with responder(chosen, ctx.obj) as who:
        _introduce(who, verbose=verbose, silent=as_json)
        _note_template(who, model)
        if as_json:
            return terminal.show_json(_whole(who, model, messages, sampling))
        ending = _stream(who, model, messages, sampling, said=[])
    if stats:
        terminal.note(_stats(ending))
    return None


def chat(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", show_default=False, help="Not needed if there is one.")
    ] = None,
    *,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stats: Annotated[bool, typer.Option("--stats", help="Show tokens and times of each answer.")] = False,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    platform: Platform = None,
    guest_memory: GuestMemory = None,
    guest_cpus: GuestCpus = None,
    npu: Npu = None,
    memory: MemoryKind = None,
    threads: Threads = None,
    context: Context = None,
    models: ModelsFolder = None,
    device_key: DeviceKeyFile = None,
) -> None:
    """Talk with a model.

    The conversation stays in memory and ends with the command.
    """
    from flexserve import settings
    from flexserve.cli.worlds import responder

    if model is not None:
        _refuse_file(model)
    sampling = _sampling(max_tokens, temperature, top_p, seed, None)
    chosen = settings.load(
        host=host,
        port=port,
        unix_socket=unix_socket,
        platform=platform,
        guest_memory=guest_memory,
        guest_cpus=guest_cpus,
        npu=npu,
        memory=memory,
        threads=threads,
        context=context,
        models=models,
        device_key=device_key,
    )
    with responder(chosen, ctx.obj) as who:
        _introduce(who, verbose=True, silent=False)
        model = model or _only_model(who)
        _note_template(who, model)
        conversation = Conversation(who, model, sampling, stats=stats)
        conversation.hold()


class Conversation:
    """A chat at the terminal. `messages` is the conversation so far, and its only copy."""

    def __init__(self, who: Responder, model: str, sampling: Sampling, *, stats: bool) -> None:
        self.messages: list[ChatMessage] = []
        self._who = who
        self._model = model
        self._sampling = sampling
        self._stats = stats

    def hold(self) -> None:
        """Read, answer, repeat, until the person leaves."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # editing and recall of lines; nothing here writes them to a file
        if sys.stdin.isatty():
            terminal.note(f"Chatting with {self._model}. /help says what else there is.")
        while (line := self._read()) is not None:
            match line.strip():
                case "":
                    continue
                case "/exit" | "/quit":
                    return
                case "/help":
                    terminal.note(_CHAT_HELP)
                case "/clear":
                    self.messages.clear()
                    terminal.note("forgotten")
                case command if command.startswith("/"):
                    terminal.note(f"There is no command {command.split()[0]}; /help lists them.")
                case text:
                    self._answer(text)

    def _read(self) -> str | None:
        """Return the next line, or None when there is none to come."""
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                terminal.say()
            return None
        except KeyboardInterrupt:
            terminal.note("\n(Ctrl-D or /exit leaves)")
            return ""

    def _answer(self, text: str) -> None:
        """Answer `text`. An error takes it back; an interruption keeps what was said."""
        from flexserve.protocol.messages import ChatMessage

        asked = len(self.messages)
        said: list[str] = []
        try:
            self.messages.append(ChatMessage("user", _checked(text)))
            ending = _stream(self._who, self._model, self.messages, self._sampling, said=said)
            if self._stats:
                terminal.note(_stats(ending))
        except KeyboardInterrupt:
            terminal.note("\n(stopped)")
        except FlexServeError as error:
            del self.messages[asked:]
            return terminal.show_error(error)
        if said:
            self.messages.append(ChatMessage("assistant", "".join(said)))
        else:
            del self.messages[asked:]
        return None


def _stream(
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

    to_terminal, thinking = sys.stdout.isatty(), False
    with contextlib.closing(who.ask(model, messages, sampling)) as pieces, _waiting() as answered:
        for piece in pieces:
            answered()
            if isinstance(piece, Ending):
                typer.echo()
                return piece
            if not isinstance(piece, str):
                thinking = to_terminal
                if to_terminal:
                    typer.secho(terminal.printable(piece.text), dim=True, nl=False)
                    sys.stdout.flush()
                continue
            if thinking:
                typer.echo("\n")
                thinking = False
            said.append(piece)
            typer.echo(terminal.printable(piece) if to_terminal else piece, nl=False)
            sys.stdout.flush()
    raise AssertionError("an answer ends with an Ending or an error")


def _whole(who: Responder, model: str, messages: list[ChatMessage], sampling: Sampling) -> dict[str, Any]:
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


def _introduce(who: Responder, *, verbose: bool, silent: bool) -> None:
    label = who.protection()
    if verbose and not silent:
        terminal.note(f"answered by {who.place}")
        terminal.note(f"protection: {label.name}: {label.summary}")
    if not label.protected and not silent:
        terminal.warn(terminal.UNPROTECTED if label.name == "plain" else "model memory is UNPROTECTED.")


def _note_template(who: Responder, model: str) -> None:
    if who.has_template(model) is False:
        terminal.note(f"{model} brings {NO_TEMPLATE}")


def _stats(ending: Ending) -> str:
    usage, times = ending.usage, ending.timings
    parts = [
        f"prompt {usage.prompt_tokens} tokens ({usage.cached_tokens} cached)",
        f"answer {usage.completion_tokens} tokens ({ending.reason})",
        f"first token after {times.ttft:.0f} ms",
    ]
    if times.decode > 0:
        parts.append(f"{1000 * usage.completion_tokens / times.decode:.1f} tokens/s")
    if times.restored_bytes:
        parts.append(f"restored {format_size(times.restored_bytes)} (waited {times.restore:.0f} ms)")
    if times.npu_products:
        parts.append(f"{times.npu_products} products on the NPU")
    return ", ".join(parts)


def _only_model(who: Responder) -> str:
    names = who.models()
    match names:
        case [name]:
            return name
        case []:
            raise CallerError("There is no model yet.", hint="Add one with `flexserve add FILE.gguf`.")
        case _:
            shown = ", ".join(names[:10])
            raise CallerError("There are several models.", hint=f"Name one: flexserve chat MODEL ({shown}).")


def _refuse_file(model: str) -> None:
    if model.lower().endswith(".gguf") or "/" in model:
        raise CallerError(
            f"{model} is a file, and models are run by name.",
            hint=f"Add it first: flexserve add {model}",
            code="not_added",
        )


def _prompt(given: str | None) -> str:
    """Return the prompt, from standard input if it is not on the command line."""
    from flexserve.protocol.bounds import MAX_TEXT

    if given is not None and given != "-":
        return _checked(given)
    data = sys.stdin.buffer.read(4 * MAX_TEXT + 1)  # a character has up to four bytes
    try:
        return _checked(data.decode())
    except UnicodeDecodeError:
        raise CallerError("The prompt is not UTF-8 text.", hint="Convert it with iconv.") from None


def _checked(text: str) -> str:
    from flexserve.protocol.bounds import MAX_TEXT

    if not text.strip():
        raise CallerError("The prompt is empty.", hint="Give one, or pipe one in.")
    if len(text) > MAX_TEXT:
        raise CallerError(f"The prompt is longer than {MAX_TEXT} characters.", hint="Shorten it.")
    if any("\ud800" <= char <= "\udfff" for char in text):  # how Python holds bytes that are not UTF-8
        raise CallerError("The prompt is not UTF-8 text.", hint="Convert it with iconv.")
    return text


def _sampling(
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    stop: list[str] | None,
) -> Sampling:
    from flexserve.protocol.sampling import Sampling

    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop,
    }
    return Sampling(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
