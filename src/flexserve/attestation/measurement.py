"""What a secure world consists of, as digests: every file that its processes could import, or have mapped.

`main`, run by flexserve.interpreter as a secure world is, prints them as JSON.

By parts, so that a difference says where it is: our package, the engine (llama.cpp, built for one CPU), the
other packages, Python itself, and what all of them take of the system: shared libraries and their loader.
Two installations of one commit have the same digests wherever they lie. So left out is what names a place:
notes of installers, but for entry points; and of a `.pth` file the lines that name folders, since these
folders are measured. Left out, too, are folders of compiled copies, since `interpreter` has Python run none
of them. The order of folders counts, since it decides which of two modules of one name is imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.machinery import all_suffixes
from pathlib import Path

import cbor2

from flexserve import interpreter
from flexserve.errors import CallerError

_PACKAGE = Path(__file__).parents[1]
PROGRAM = (*interpreter.OPTIONS, "flexserve.secure_world.main")  # as normal.process starts it
PROGRAMS = (  # of all processes of a secure world
    "flexserve.secure_world.program",
    "flexserve.trusted.store.key_holder",
    "flexserve.trusted.text.rendering.helper",
    "flexserve.platforms.linux.companion",
    "flexserve.platforms.trustzone.measured_boot",
)
_PIECE = 1 << 16  # bytes that are read at a time: most files are smaller, and room for more takes time to get
_COMPILED = "__pycache__"
_NOTED = (".dist-info", ".egg-info")
_NOT_IMPORTED = ("site-packages", "dist-packages", "config-")  # in the folder of Python's own library


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """SHA-512 of each part, by its name; and the last moment (seconds since 1970) at which a file changed."""

    parts: dict[str, bytes]
    changed: float


def measure(roots: Sequence[str] | None = None, programs: Sequence[str] = PROGRAMS) -> Measurement:
    """Return what a process with the import path `roots` (None: this one's) could import, and has mapped.

    Imports `programs`, so that what they map is mapped. Raises OSError for a file that cannot be read.
    """
    for program in programs:
        importlib.import_module(program)
    parts = {part: hashlib.sha512() for part in ("python", "libraries", "flexserve", "engine", "packages")}
    found: set[str] = set()
    changed = 0.0
    paths = dict.fromkeys(os.path.realpath(root) for root in (sys.path if roots is None else roots))
    for files in (_mapped(tuple(paths)), *(_files_below(root) for root in paths)):
        digests: dict[str, dict[str, bytes]] = {part: {} for part in parts}
        for part, name, path in files:
            with open(path, "rb", buffering=0) as file:
                changed = max(changed, os.fstat(file.fileno()).st_ctime)
                if not name.endswith(".pth"):
                    digest = hashlib.sha256()
                    while data := file.read(_PIECE):
                        digest.update(data)
                    digests[part][name] = digest.digest()
                elif running := _running_lines(file.readall()):
                    digests[part][name] = hashlib.sha256(running).digest()
        for part in (part for part in parts if digests[part]):
            parts[part].update(_digest_of(digests[part]))
            found.add(part)
    return Measurement({part: whole.digest() for part, whole in parts.items() if part in found}, changed)


def _mapped(roots: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the interpreter, and each file not below `roots` of which this process has code mapped."""
    executable = os.path.realpath(sys.executable)
    yield "python", "python", executable
    with open("/proc/self/maps") as mappings:
        fields = [line.rstrip("\n").split(maxsplit=5) for line in mappings]
    mapped = {each[5] for each in fields if "x" in each[1] and each[5:] and each[5].startswith("/")}
    below = tuple(os.path.join(root, "") for root in roots)
    names: list[str] = []
    for path in sorted(path for path in mapped - {executable} if not path.startswith(below)):
        names.append(os.path.basename(path))
        name = names[-1] + "+" * (names.count(names[-1]) - 1)  # no file hides another of its name
        yield "python" if name.startswith("libpython") else "libraries", name, path


def _files_below(root: str) -> Iterator[tuple[str, str, str]]:
    """Yield each file of a folder (or archive) of the import path: its part, its name there, where it is."""
    library = os.path.realpath(sysconfig.get_paths()["stdlib"])
    if os.path.isfile(root):
        yield "packages", os.path.basename(root), root
    for folder, folders, files in os.walk(root, followlinks=True):
        ours = folder == library
        folders[:] = [
            name for name in folders if name != _COMPILED and not (ours and name.startswith(_NOT_IMPORTED))
        ]
        part, inside = _place(folder, root, library)
        for name in files:
            if not folder.endswith(_NOTED) or _counts_among_notes(name):
                yield part, inside + name, f"{folder}/{name}"


def _counts_among_notes(name: str) -> bool:
    """Return whether a file among an installer's notes decides what runs: they can be imported, too."""
    return name == "entry_points.txt" or name.endswith(tuple(all_suffixes()))


def _place(folder: str, root: str, library: str) -> tuple[str, str]:
    """Return the part that files of a folder belong to, and what their names in it begin with."""
    ours = os.path.relpath(folder, _PACKAGE)
    if not ours.startswith(".."):
        return "flexserve", "" if ours == "." else f"{ours}/"
    name = "" if folder == root else f"{os.path.relpath(folder, root)}/"
    if root.startswith(library) and "-packages" not in root:
        return "python", name
    return ("engine" if name.startswith("llama_cpp/") else "packages"), name


def _running_lines(content: bytes) -> bytes:
    """Return the lines of a `.pth` file but for those that are a folder's name, however Python reads them."""
    lines = content.decode(errors="surrogateescape").splitlines()
    running = [line for line in lines if line.startswith("import ") or not line.isprintable()]
    return "\n".join(running).encode(errors="surrogateescape")


def _digest_of(files: dict[str, bytes]) -> bytes:
    """Return one digest of files by their names; of nothing else, and in no order but the names'."""
    whole = hashlib.sha512()
    for name in sorted(files):
        encoded = os.fsencode(name)
        whole.update(len(encoded).to_bytes(4, "big") + encoded + files[name])
    return whole.digest()


def with_configuration(parts: dict[str, bytes], config: dict[str, str]) -> dict[str, bytes]:
    """Return the digests of a secure world: those of its parts, and of how its interpreter runs it."""
    return {**parts, "configuration": hashlib.sha512(cbor2.dumps(config, canonical=True)).digest()}


def world_digest(measurements: dict[str, bytes]) -> bytes:
    """Return the code digest of the world's layer, which is over all measurements of its token."""
    return hashlib.sha512(cbor2.dumps(measurements, canonical=True)).digest()


def configuration(words: Sequence[str]) -> dict[str, str]:
    """Return how the interpreter runs `words` (its options and a module), which decides what files do."""
    python = {"python": platform.python_version(), "implementation": sys.implementation.name}
    return {**python, "program": " ".join(words)}


def reference(program: Sequence[str] = PROGRAM) -> dict[str, bytes]:
    """Return the measurements of a secure world of this installation, which runs `program`.

    They are taken by an interpreter that sees what the secure process would. Raises CallerError.
    """
    command = interpreter.command(__name__)
    try:
        printed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise CallerError("This installation cannot be measured.", hint="Install flexserve again.") from None
    parts = {name: bytes.fromhex(digest) for name, digest in json.loads(printed).items()}
    return with_configuration(parts, configuration(program))


def main() -> None:
    """Print the digests of the parts as JSON."""
    parts = measure().parts
    print(json.dumps({name: digest.hex() for name, digest in parts.items()}))  # noqa: T201


if __name__ == "__main__":
    main()
