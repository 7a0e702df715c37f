"""Above each call and command stands what it changes: the states from => to, as the interface has them."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "monitor" / "core"
ABI = tomllib.loads((ROOT / "abi" / "flex.toml").read_text())
MOVES = {row["event"]: (row["from"], row["to"]) for row in ABI["transition"]}

FUNCTION = re.compile(
    r"(?:^/\*(?P<heading>(?:(?!\*/).)*)\*/\n)?"
    r"^(?:static )?[a-z][\w ]*[ *](?P<name>\w+)\([^;{]*\)\n\{\n(?P<body>.*?)^\}$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the core: the calls and commands that its comment heads, and that comment in one line."""

    name: str
    heads: tuple[str, ...]
    heading: str
    body: str

    def said(self, of: str) -> set[tuple[str, str]]:
        """Return the states from and to that the heading names for `of`: "page" or "NPU"."""
        found = re.findall(rf"{of}(?: that is)? ([A-Z]+(?: or [A-Z]+)*) => ([A-Z]+)", self.heading)
        return {(old, new) for olds, new in found for old in olds.split(" or ")}


def functions() -> list[Function]:
    """Return all of the core's, but those of the self-test, which tries what is illegal, too."""
    found = []
    for path in sorted(CORE.glob("*.c")):
        if path.name != "selftest.c":
            for each in FUNCTION.finditer(path.read_text()):
                heading = each["heading"] or ""
                heads = tuple(re.findall(r"^ \* ([A-Z_]+): ", heading, re.MULTILINE))
                found.append(
                    Function(each["name"], heads, re.sub(r"\s*\n \*\s*", " ", heading), each["body"])
                )
    return found


def test_each_call_and_command_is_headed_by_what_it_changes_and_when_it_is_refused():
    headed = [name for function in functions() for name in function.heads if "Refused: " in function.heading]
    assert sorted(headed) == sorted(row["name"] for kind in ("call", "command") for row in ABI[kind])


def test_a_heading_names_exactly_the_moves_of_pages_that_the_function_makes():
    moved = 0
    for function in functions():
        made = {MOVES[event] for event in re.findall(r"pages_(?:move|sweep)\(FLEX_MOVE_(\w+)", function.body)}
        assert function.said("page") == made, function.name
        moved += len(made)
    assert moved > len(MOVES), "no function was looked at"


def test_a_heading_names_the_state_that_the_function_brings_the_npu_to():
    changed = {}
    for function in functions():
        reached = set(re.findall(r"become\(FLEX_NPU_STATE_(\w+)\)", function.body))
        if reached:
            changed[function.name] = {new for _, new in function.said("NPU")}
            assert changed[function.name] == reached
    assert set.union(*changed.values()) == {"ENTERING", "SECURE", "LEAVING", "NORMAL"}


def test_a_heading_names_every_status_that_the_function_refuses_with():
    for function in functions():
        if function.heads:
            said = set(re.findall(r"\b([A-Z]+) \(|\bor ([A-Z]+)", function.heading.partition("Refused: ")[2]))
            given = set(re.findall(r"FLEX_STATUS_(\w+)", function.body)) - {"OK"}
            assert given <= {name for names in said for name in names}, function.name
