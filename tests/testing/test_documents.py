"""The documents name files that exist, and the page of locks names every lock."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "flexserve"
# Decisions tell history: they may name what is gone. The changelog, too.
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("[!C]*.md")),
    ROOT / "CONTRIBUTING.md",
    ROOT / "monitor" / "README.md",
    ROOT / "secure-os" / "README.md",
]
_QUOTED = re.compile(r"`((?:[\w.-]+/)*[\w.*-]*)`")
_MODULE = re.compile(r"\bflexserve(?:\.[a-z_0-9]+){2,}")  # with one dot, it may be a field of the API
_LOCK = re.compile(
    r"(\w+)(?:: [\w.]+)? = (?:.*, )?(?:threading|asyncio)\.(?:Lock|RLock|Condition|Semaphore)\("
)
_LOCK_OF_DRIVER = re.compile(r"(?:spin_lock|mutex)_init\(&\w+->([\w.]+)\)")
# What runs the product; tools take locks of their own.
_LOCKING = ("normal", "platforms", "protocol", "secure_world", "serving", "tee_client", "trusted", "vendor")
_FOLDERS = ("src", "tests", "monitor", "secure-os", "driver", "abi", "docs", "tools", "models")
_ENDINGS = (".py", ".c", ".h")


def files_named_in(page: Path) -> set[str]:
    """Return what a page quotes that looks like a file or a folder of this repository."""
    bases = {base: {entry.name for entry in base.iterdir()} for base in _bases(page)}
    named = set()
    for word in _QUOTED.findall(page.read_text()):
        folder = word.partition("/")[0]
        if ("/" in word and any(folder in names for names in bases.values())) or (
            "/" not in word and word.endswith(_ENDINGS) and word[0] != "."
        ):
            named.add(word)
    return {word for word in named if "NAME" not in word}


def exists(word: str, page: Path) -> bool:
    """Return whether `word` is a file or folder, with or without its ending; or a name in a module."""
    if "/" not in word:
        return any(next((ROOT / folder).rglob(word), None) for folder in _FOLDERS)
    parent, _, name = word.rstrip("/").rpartition("/")
    for base in _bases(page):
        folder = base / parent
        for shape in (name, f"{name}.py", f"{name}-*", f"{name.partition('.')[0]}.py"):
            if folder.is_dir() and next(folder.glob(shape), None):
                return True
    return False


def is_module(name: str) -> bool:
    """Return whether a dotted name is a package, a module, or something in a module."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").exists() or path.parent.with_suffix(".py").exists()


def _bases(page: Path) -> list[Path]:
    return [ROOT, PACKAGE, page.parent]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_document_names_exists(page: Path) -> None:
    missing = sorted(word for word in files_named_in(page) if not exists(word, page))
    assert not missing, f"{page.relative_to(ROOT)} names files that do not exist: {', '.join(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_that_a_document_names_exists(page: Path) -> None:
    missing = sorted(name for name in set(_MODULE.findall(page.read_text())) if not is_module(name))
    assert not missing, f"{page.relative_to(ROOT)} names modules that do not exist: {', '.join(missing)}"


def test_a_page_that_names_a_missing_file_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`policy/eviction.py` is there, `policy/house.py` and `no_such_test.py` are not.")
    assert {word for word in files_named_in(page) if not exists(word, page)} == {
        "policy/house.py",
        "no_such_test.py",
    }


def test_every_lock_is_in_the_tables_of_locks() -> None:
    lines = (ROOT / "docs" / "locking.md").read_text().splitlines()
    missing = [
        f"{path.relative_to(PACKAGE)}: {lock}"
        for folder in _LOCKING
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for lock in _LOCK.findall(path.read_text())
        if not any(path.stem in line and lock in line for line in lines)
    ]
    missing += [
        f"{path.relative_to(ROOT)}: {lock}"
        for path in sorted((ROOT / "driver").glob("flex[mn]*/*.c"))
        for lock in _LOCK_OF_DRIVER.findall(path.read_text())
        if not any(path.parent.name in line and f"{lock}`" in line for line in lines)
    ]
    assert not missing, f"docs/locking.md lacks {', '.join(missing)}"
