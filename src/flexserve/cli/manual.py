"""`flexserve man`: the manual's pages, made of the help, so that they cannot say anything else."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from flexserve import __version__
from flexserve.cli import terminal
from flexserve.cli.help import ReadableCommand, sections, summary
from flexserve.cli.options import AsJson
from flexserve.cli.statuses import MEANINGS
from flexserve.errors import NormalWorldError

_SECTION = "man1"
_FILES = (
    ("~/.config/flexserve/config.toml", "settings; `flexserve config --schema` describes them"),
    ("~/.config/flexserve/device.key", "the key that opens the models of this device; keep a backup"),
    ("~/.local/share/flexserve/models", "the sealed models"),
    ("~/.cache/flexserve", "what can be made again: built parts of the emulated machine, synthetic models"),
)
_ENVIRONMENT = (
    ("FLEXSERVE_…", "each setting, as FLEXSERVE_PORT=8080; flags are stronger, the file is weaker"),
    ("HF_TOKEN", "for models of Hugging Face that want one (`flexserve pull`)"),
    ("XDG_CONFIG_HOME, XDG_DATA_HOME, XDG_CACHE_HOME", "other places for the files below"),
)


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command("man", epilog="Example: flexserve man, then man flexserve-pull")(man)


def man(
    ctx: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", show_default=False, help="Where to [~/.local/share/man]."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the pages of the manual, one for each command.

    Where ~/.local/bin is in the PATH, `man flexserve` finds them; else `man -M DIR flexserve` does.
    """
    root = folder or Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "man"
    pages = _pages(ctx.parent)
    try:
        (root / _SECTION).mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            (root / _SECTION / f"{name}.1").write_text(text, encoding="utf-8")
    except OSError as error:
        raise NormalWorldError(
            f"The manual cannot be written to {root}: {error.strerror}.", hint="Name another folder."
        ) from None
    if as_json:
        return terminal.show_json({"folder": str(root), "pages": list(pages)})
    return terminal.say(f"wrote {len(pages)} pages; read them: man -M {root} flexserve")


def _pages(root: Any) -> dict[str, str]:
    """Return the text of each page by its name, for the application's context."""
    commands: dict[str, Any] = root.command.commands
    pages = {"flexserve": _overview(root, commands)}
    for name, command in commands.items():
        pages[_page(name)] = _page_of(root, name, command)
    return pages


def _overview(root: Any, commands: dict[str, Any]) -> str:
    page = _Page("flexserve", "a secure, memory-elastic server of language models")
    page.section("SYNOPSIS", ".B flexserve", ".I COMMAND", "[OPTIONS]")
    page.section("DESCRIPTION")
    page.prose(root.command.help)
    page.section("COMMANDS")
    for title, names in sections(list(commands)):
        page.subsection(title)
        page.rows((f"flexserve {name}", f"{summary(commands[name])}.") for name in names)
    page.statuses()
    page.section("ENVIRONMENT")
    page.rows(_ENVIRONMENT)
    page.section("FILES")
    page.rows(_FILES)
    page.see([_page(name) for name in commands])
    return page.text


def _page_of(root: Any, name: str, command: ReadableCommand) -> str:
    with root.command.context_class(command, parent=root, info_name=name) as ctx:
        page = _Page(_page(name), summary(command))
        arguments, options = command.rows(ctx)
        page.section("SYNOPSIS", f".B {_plain(f'flexserve {name}')}", _plain(" ".join(_pieces(command, ctx))))
        page.section("DESCRIPTION")
        page.prose(command.help)
        for title, rows in (("ARGUMENTS", arguments), ("OPTIONS", options)):
            if rows:
                page.section(title)
                page.rows(rows)
        page.statuses()
        if command.epilog:
            page.section("EXAMPLE")
            page.prose(command.epilog.removeprefix("Example: "))
        page.see(["flexserve"])
        return page.text


def _pieces(command: ReadableCommand, ctx: Any) -> list[str]:
    return command.collect_usage_pieces(ctx)


class _Page:
    """A page of the manual, in the language of man(7)."""

    def __init__(self, name: str, about: str) -> None:
        self._lines = [f'.TH {_plain(name.upper())} 1 "" "flexserve {__version__}" "FlexServe"']
        self.section("NAME", f"{_plain(name)} \\- {_plain(about[:1].lower() + about[1:])}")

    @property
    def text(self) -> str:
        """The whole page."""
        return "\n".join([*self._lines, ""])

    def section(self, title: str, *lines: str) -> None:
        """Begin a section; `lines` are in man(7) already."""
        self._lines += [f".SH {title}", *lines]

    def subsection(self, title: str) -> None:
        """Begin a part of a section."""
        self._lines.append(f".SS {_plain(title)}")

    def prose(self, text: str | None) -> None:
        """Add paragraphs."""
        paragraphs = [" ".join(each.split()) for each in (text or "").split("\n\n") if each.strip()]
        for number, paragraph in enumerate(paragraphs):
            self._lines += [".PP"] * (number > 0) + [_plain(paragraph)]

    def rows(self, rows: Any) -> None:
        """Add what is written, and what it means."""
        for written, meaning in rows:
            self._lines += [".TP", f".B {_plain(written)}", _plain(meaning)]

    def statuses(self) -> None:
        """Add what the exit statuses mean."""
        self.section("EXIT STATUS")
        self.rows((str(status.value), f"{meaning}.") for status, meaning in MEANINGS.items())

    def see(self, pages: list[str]) -> None:
        """Name other pages."""
        self.section("SEE ALSO", *[f".BR {_plain(page)} (1)," for page in pages[:-1]])
        self._lines.append(f".BR {_plain(pages[-1])} (1)")


def _page(name: str) -> str:
    """Return the name of a command's page."""
    return f"flexserve-{name.replace(' ', '-')}"


def _plain(text: str) -> str:
    """Return `text` as man(7) prints it: nothing in it is a request, and a hyphen stays one."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "")
    return re.sub(r"^([.'])", r"\\&\1", text)
