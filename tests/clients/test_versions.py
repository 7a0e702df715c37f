"""The table of clients that were tried names the versions that are pinned."""

from __future__ import annotations

import json
import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]
LIBRARIES = PROJECT / "tests" / "clients" / "libraries"
PIN = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)
ROW = re.compile(r"^\| `([^`]+)`[^|]*\| ([^ |]+) \|", re.MULTILINE)


def test_the_table_of_clients_names_the_versions_that_are_pinned() -> None:
    own = dict(PIN.findall((PROJECT / "requirements-dev.lock").read_text()))
    others = dict(PIN.findall((LIBRARIES / "requirements.txt").read_text()))
    node = json.loads((LIBRARIES / "vercel" / "package-lock.json").read_text())["packages"]
    pinned = {**others, **{name: own[name] for name in ("openai", "anthropic", "ollama")}}
    pinned |= {path.removeprefix("node_modules/"): package.get("version") for path, package in node.items()}
    named = dict(ROW.findall((PROJECT / "docs" / "clients.md").read_text()))
    wanted = re.findall(r"^([a-z-]+)", (LIBRARIES / "requirements.in").read_text(), re.MULTILINE)
    assert {*wanted, "openai", "anthropic", "ollama", "ai"} <= named.keys()
    assert named == {name: pinned[name] for name in named}


def test_the_packages_of_node_are_pinned_by_what_is_in_them_and_by_no_address() -> None:
    lock = json.loads((LIBRARIES / "vercel" / "package-lock.json").read_text())
    packages = {path: package for path, package in lock["packages"].items() if path}
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert not any("resolved" in package for package in packages.values())
