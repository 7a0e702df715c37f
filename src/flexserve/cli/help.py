"""Help as people read it: names of values, ranges in words, commands by what they are for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from flexserve.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

# Which commands belong together, in the order in which a newcomer meets them. One that is in no row is in
# the last section.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Models": (
        "pull",
        "add",
        "import",
        "list",
        "show",
        "set",
        "verify",
        "rm",
        "du",
        "gc",
        "key export",
        "key import",
    ),
    "Ask": ("run", "chat"),
    "Serve": ("serve", "ps", "top", "log", "api-key add", "api-key list", "api-key rm"),
    "Memory": ("free", "limit", "pin", "unpin", "stop", "recall"),
    "Trust": ("doctor", "attack", "attest", "measure", "connect", "receipt verify"),
    "Vendors": ("vendor keygen", "vendor seal", "vendor license", "vendor serve-keys"),
    "Measure": ("bench", "bench paper", "bench application", "tune", "synth", "boot"),
}
OTHERS = "Others"

_PLACEHOLDERS = {"int": "N", "float": "NUMBER", "path": "PATH", "str": "TEXT", "list[str]": "TEXT"}
_TYPE = re.compile(r"<([\w\[\]]+?)(?: range)?>")
_CHOICE = re.compile(r"<((?:[\w.-]+\|)+[\w.-]+)>")
_BETWEEN = re.compile(r"(-?[\d.]+)<=x<=([\d.]+)")
_AT_LEAST = re.compile(r"x>=(-?[\d.]+)")
_UNBOUNDED = MIB  # a bound from here on is there for the program, not for people


class ReadableCommand(TyperCommand):
    """A command whose help has no types of Python and no formulas."""

    def rows(self, ctx: Any) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Return (what is written, what it means) of each argument, and of each option."""
        arguments, options = [], []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            written, meaning = record[0], _in_words(record[1])
            if parameter.param_type_name == "argument":
                arguments.append((_TYPE.sub("", written).strip(), meaning))
            else:
                options.append((_named(written), meaning))
        return arguments, options

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options."""
        for title, rows in zip(("Arguments", "Options"), self.rows(ctx), strict=True):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line; what has to be given stands without brackets."""
        return [re.sub(r"^\{(.*)\}", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]


def sections(names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each section with those of its commands that are in `names`."""
    placed = {name for section in SECTIONS.values() for name in section}
    rest = tuple(name for name in names if name not in placed)
    for title, section in {**SECTIONS, OTHERS: rest}.items():
        found = [name for name in section if name in names]
        if found:
            yield title, found


def summary(command: Any) -> str:
    """Return the first sentence of what a command says of itself."""
    paragraph, _, _ = (command.help or "").partition("\n\n")
    sentence, _, _ = " ".join(paragraph.split()).partition(". ")
    return sentence.rstrip(".")


def _named(written: str) -> str:
    """Return an option with names for its values: `--runs N`, `--memory secret|plain`."""
    named = _TYPE.sub(lambda match: _PLACEHOLDERS.get(match[1], match[1].upper()), written)
    return _CHOICE.sub(r"\1", named)


def _in_words(meaning: str) -> str:
    def between(match: re.Match[str]) -> str:
        least, most = match[1], match[2]
        return f"{least} or more" if float(most) >= _UNBOUNDED else f"{least} to {most}"

    return _AT_LEAST.sub(r"\1 or more", _BETWEEN.sub(between, meaning))
