"""What a secure world consists of, as digests: every file that its process could import.

    python -I -m flexserve.attestation.measurement      prints them, of this installation, as JSON

By parts, so that a difference says where it is: our package, the engine (llama.cpp, built for one CPU), the
other packages, and Python itself. Two installations of one commit have the same digests wherever they lie. So
left out is what names a place: compiled copies of sources (.pyc), and what installers note (METADATA of
packages, but for their entry points). Of a `.pth` file the lines that name folders are left out, since these
folders are measured; those that run code count.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import cbor2

from flexserve.errors import CallerError

_PACKAGE = Path(__file__).parents[1]
PROGRAM = ("-I", "-m", "flexserve.secure_world.main")  # as protocol.launch and normal.process start it
_COMPILED = "__pycache__"
_NOTED = (".dist-info", ".egg-info")
_NOT_IMPORTED = ("site-packages", "dist-packages", "config-")  # in the folder of Python's own library


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """SHA-512 of each part, by its name; and the last moment (seconds since 1970) at which a file changed."""

    parts: dict[str, bytes]
    changed: float


def measure(roots: Sequence[str] | None = None) -> Measurement:
    """Return what a process with the import path `roots` (None: this one's) could import.

    Raises OSError for a file that cannot be read.
    """
    found: dict[str, dict[str, bytes]] = {"python": {}, "flexserve": {}, "engine": {}, "packages": {}}
    changed = 0.0
    for part, name, path in _files(sys.path if roots is None else roots):
        with open(path, "rb") as file:
            changed = max(changed, os.fstat(file.fileno()).st_ctime)
            if not name.endswith(".pth"):
                found[part][name] = hashlib.file_digest(file, "sha256").digest()
            elif running := _running_lines(file.read()):
                found[part][name] = hashlib.sha256(running).digest()
    return Measurement({part: _digest_of(files) for part, files in found.items() if files}, changed)


def _files(roots: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield each file once: its part, its name there, and where it is."""
    yield "python", "python", os.path.realpath(sys.executable)
    library = sysconfig.get_paths()["stdlib"]
    seen: set[str] = set()
    for root in dict.fromkeys(os.path.realpath(root) for root in roots):
        for folder, folders, files in os.walk(root, followlinks=True):
            ours = folder == library
            folders[:] = [
                name
                for name in folders
                if name != _COMPILED and not (ours and name.startswith(_NOT_IMPORTED))
            ]
            for name in files:
                path = os.path.join(folder, name)
                if path not in seen and _counts(folder, name):
                    seen.add(path)
                    yield (*_place(path, root, library), path)


def _counts(folder: str, name: str) -> bool:
    if folder.endswith(_NOTED):
        return name == "entry_points.txt"
    return not name.endswith(".pyc")


def _place(path: str, root: str, library: str) -> tuple[str, str]:
    """Return the part that a file belongs to, and its name in it."""
    ours = os.path.relpath(path, _PACKAGE)
    if not ours.startswith(".."):
        return "flexserve", ours
    name = os.path.relpath(path, root)
    if root.startswith(library) and "-packages" not in root:
        return "python", name
    return ("engine" if name.startswith("llama_cpp/") else "packages"), name


def _running_lines(content: bytes) -> bytes:
    return b"\n".join(line for line in content.splitlines() if line.startswith((b"import ", b"import\t")))


def _digest_of(files: dict[str, bytes]) -> bytes:
    """Return one digest of files by their names; of nothing else, and in no order but the names'."""
    whole = hashlib.sha512()
    for name in sorted(files):
        whole.update(len(name.encode()).to_bytes(4, "big") + name.encode() + files[name])
    return whole.digest()


def with_configuration(parts: dict[str, bytes], config: dict[str, str]) -> dict[str, bytes]:
    """Return the digests of a secure world: those of its parts, and of how its interpreter runs it."""
    return {**parts, "configuration": hashlib.sha512(cbor2.dumps(config, canonical=True)).digest()}


def world_digest(measurements: dict[str, bytes]) -> bytes:
    """Return the code digest of the world's layer, which is over all measurements of its token."""
    return hashlib.sha512(cbor2.dumps(measurements, canonical=True)).digest()


def configuration(program: str) -> dict[str, str]:
    """Return how the interpreter runs `program` (its options and a module), which decides what files do."""
    python = {"python": platform.python_version(), "implementation": sys.implementation.name}
    return {**python, "program": program}


def reference(program: Sequence[str] = PROGRAM) -> dict[str, bytes]:
    """Return the measurements of a secure world of this installation, which runs `program`.

    They are taken by an interpreter that sees what the secure process would. Raises CallerError.
    """
    command = [sys.executable, "-I", "-m", __name__]
    try:
        printed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise CallerError("This installation cannot be measured.", hint="Install flexserve again.") from None
    parts = {name: bytes.fromhex(digest) for name, digest in json.loads(printed).items()}
    return with_configuration(parts, configuration(" ".join(program)))


def main() -> None:
    """Print the digests of the parts as JSON."""
    parts = measure().parts
    print(json.dumps({name: digest.hex() for name, digest in parts.items()}))  # noqa: T201


if __name__ == "__main__":
    main()
