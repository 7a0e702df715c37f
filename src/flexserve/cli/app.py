"""The application: its commands, what they have in common, and how errors end them."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flexserve import __version__
from flexserve.cli import (
    api_keys,
    attack,
    attestation,
    bench,
    configuration,
    connect,
    device_key,
    doctor,
    machine,
    manual,
    memory,
    model_options,
    models,
    pull,
    receipt,
    server,
    talk,
    terminal,
    top,
    tune,
    vendor,
)
from flexserve.cli.help import ReadableCommand, sections, summary
from flexserve.cli.options import AsJson
from flexserve.cli.statuses import Status
from flexserve.errors import CallerError, FlexServeError


class Commands(TyperGroup):
    """The group of all commands: an error of ours becomes two lines, or an object, and a status.

    Two words may name a command, as in `bench paper`.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command's name, the command and its arguments."""
        # Before they are read: misuse is told in the form that they ask for.
        ctx.meta[terminal.JSON_ASKED] = "--json" in args[: args.index("--") if "--" in args else None]
        name = " ".join(args[:2])
        if len(args) > 1 and name in self.commands:
            return name, self.commands[name], args[2:]
        if args and args[0] not in self.commands:
            longer = [each for each in self.commands if each.startswith(f"{args[0]} ")]
            if longer:
                ctx.fail(f"Which {args[0]} command? There are: {', '.join(longer)}.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises typer.Exit with the status, never FlexServeError."""
        as_json = False
        try:
            try:
                return super().invoke(ctx)
            finally:
                as_json = ctx.meta.get(terminal.JSON_ASKED, False)
        except FlexServeError as error:
            terminal.show_error(error, as_json=as_json)
            raise typer.Exit(Status.FAILED) from None
        except typer.TyperException as error:
            error.message = error.message.replace("Value error, ", "")  # pydantic's, which checks choices
            if not as_json:
                raise  # it is shown with the command's usage
            misuse = CallerError(error.format_message(), hint="See --help.", code="misuse")
            terminal.show_error(misuse, as_json=True)
            raise typer.Exit(Status.MISUSED) from None
        except (KeyboardInterrupt, typer.Abort):
            if sys.stderr.isatty():
                typer.echo(err=True)  # the next prompt of the shell starts on a line of its own
            raise typer.Exit(Status.INTERRUPTED) from None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write what there is, by what it is for."""
        for title, names in sections(self.list_commands(ctx)):
            with formatter.section(title):
                formatter.write_dl([(name, summary(self.commands[name])) for name in names])


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: flexserve add model.gguf, then flexserve serve",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flexserve {__version__}")
        raise typer.Exit


@app.callback()
def flexserve(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Serve language models from memory that the OS can recall but not read."""
    del version


models.register(app)
pull.register(app)
server.register(app)
top.register(app)
connect.register(app)
receipt.register(app)
vendor.register(app)
memory.register(app)
model_options.register(app)
talk.register(app)
machine.register(app)
bench.register(app)
tune.register(app)
attack.register(app)
attestation.register(app)
configuration.register(app)
api_keys.register(app)
device_key.register(app)
doctor.register(app)
manual.register(app)


@app.command(epilog="Example: flexserve version --json")
def version(as_json: AsJson = False) -> None:
    """Show the versions of FlexServe, its engine and Python."""
    import importlib.metadata
    import platform

    engine = importlib.metadata.version("llama-cpp-python")
    python = platform.python_version()
    if as_json:
        terminal.show_json({"flexserve": __version__, "llama_cpp_python": engine, "python": python})
    else:
        typer.echo(f"flexserve {__version__} (llama-cpp-python {engine}, Python {python})")


for _command in app.registered_commands:
    _command.cls = ReadableCommand
