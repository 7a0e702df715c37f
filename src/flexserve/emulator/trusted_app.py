"""Builds the trusted application of S-EL0, and llama.cpp for it: `python -m flexserve.emulator.trusted_app`.

llama.cpp's sources are those of the llama-cpp-python that the project pins, mlkem-native's those of the
distribution that trusted-app/crypto pins: pip fetches both and checks their hashes. llama.cpp is built once
for each state of its pin, of trusted-app/llama.mk and of the compiler. That takes minutes; what was
interrupted goes on where it was. The application itself takes seconds. Like the machine's other parts it has
a place of its own for each checkout.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path
from typing import TextIO

from flexserve.emulator import packages, tools
from flexserve.emulator.build import made_of, making, sources_folder
from flexserve.emulator.packages import Progress, locked
from flexserve.errors import FlexServeError, InternalError, NormalWorldError
from flexserve.folders import cache_folder
from flexserve.units import MIB

CROSS = "aarch64-linux-gnu-"
CROSS_LIBRARIES = Path("/usr/aarch64-linux-gnu")
NEEDED = ("make", f"{CROSS}gcc", f"{CROSS}g++", f"{CROSS}ar")  # programs
_PIN = re.compile(r"^llama-cpp-python==[^\n]*\n(?:[ \t]+--hash[^\n]*\n)+", re.MULTILINE)
_LLAMA = "/vendor/llama.cpp/"  # in the source distribution
_PARTS = ("include", "src", "ggml/include", "ggml/src")  # of llama.cpp
_MLKEM = "/crypto/fipsmodule/ml_kem/mlkem/"
_CRYPTO = "nettle-dev"  # Debian's: AES-GCM with the CPU's instructions where it has them, and no allocation
_NUMBERS = "libgmp-dev"  # Debian's: Nettle's elliptic curves compute with it
_COMPILES = " -c "  # in each line of make's that compiles a part
_TOLD = 10  # times that progress is told
_ROOM = 600 * MIB  # on the disk, while sources are fetched and unpacked
_FOR_TESTS = "for-tests"  # behind the digest, where all programs are built
_HOURS = 2 * 3600.0  # seconds: on a machine that does much else, too


@dataclasses.dataclass(frozen=True, slots=True)
class Programs:
    """The application. For its tests alone: a plain user of the same llama.cpp, and two built otherwise."""

    application: Path
    plain: Path
    as_if_inside: Path
    checked: Path  # by a sanitizer: it needs the cross compiler's libraries (CROSS_LIBRARIES)


def build(cache: Path, progress: Progress, *, for_tests: bool = False) -> Programs:
    """Return the programs, having built what is missing below `cache`: the application, or all `for_tests`.

    Raises MissingToolError, NormalWorldError when the disk is too full or sources or a package cannot be
    fetched, InternalError when a compiler fails.
    """
    tools.require(*NEEDED)
    ready = built(cache, for_tests=for_tests)
    if ready is not None:
        return ready  # whatever another checkout builds meanwhile
    packages.library(cache, _CRYPTO, progress)
    packages.library(cache, _NUMBERS, progress)
    library, mlkem = _library(cache), _mlkem(cache)
    llama = library / "llama.cpp"
    with locked(cache / "trusted-app.lock", progress):  # of what all checkouts use
        if not llama.is_dir():
            progress("fetching llama.cpp's sources")
            packages.require_room(cache, _ROOM, "llama.cpp for the machine")
            _fetch("llama.cpp", pin(), llama, _LLAMA, _PARTS)
        if not mlkem.is_dir():
            progress("fetching mlkem-native's sources")
            _fetch("mlkem-native", _mlkem_pin(), mlkem, _MLKEM, ("",))
        build_library(llama, library, progress)
    with making(sources_folder(), cache, progress):
        if built(cache, for_tests=for_tests) is None:
            progress("building the trusted application")
            out = _stamp(cache).parent
            if built(cache) is None:
                shutil.rmtree(out, ignore_errors=True)  # it is of other sources
            crypto = (
                f"CRYPTO={_crypto(cache)}",
                f"NUMBERS={cache / f'arm64-{_NUMBERS}' / 'usr'}",
                f"MLKEM={mlkem}",
            )
            target = "all" if for_tests else out / "trusted-app"
            _make(llama, library, str(target), f"OUT={out}", *crypto)
            record(cache, for_tests=for_tests)
    return _programs(cache)


def built(cache: Path, *, for_tests: bool = False) -> Programs | None:
    """Return the programs if they are built of what is here. Builds nothing."""
    stamp = _stamp(cache)
    if shutil.which(f"{CROSS}g++") is None or not stamp.exists():
        return None
    said = stamp.read_text().split()  # nothing, where writing it broke off
    current = said[:1] == [_digest(cache)] and (_FOR_TESTS in said or not for_tests)
    return _programs(cache) if current else None


def record(cache: Path, *, for_tests: bool = False) -> None:
    """Record that the programs are built of what is here."""
    stamp = _stamp(cache)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(f"{_digest(cache)} {_FOR_TESTS if for_tests else ''}")


def default_cache() -> Path:
    """Return where the machine's parts are built unless somebody says otherwise."""
    return cache_folder() / "trustzone"


def _sources() -> Path:
    return sources_folder() / "trusted-app"


def pin() -> str:
    """Return the lines of the lock that name the source distribution."""
    found = _PIN.search((sources_folder() / "requirements.lock").read_text())
    if found is None:
        raise InternalError("requirements.lock pins no llama-cpp-python.", hint="Report this.")
    return found[0].replace("\\\n", "\n").replace("\n", " ").strip() + "\n"


def _library(cache: Path) -> Path:
    """Return where llama.cpp is built: a folder for each state of what it is made of."""
    compiler = tools.run(f"{CROSS}g++", "--version").splitlines()[0]
    parts = (pin(), (_sources() / "llama.mk").read_text(), compiler)
    return cache / f"llama-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


def _mlkem_pin() -> str:
    """Return the line that names the source distribution with mlkem-native."""
    lines = (_sources() / "crypto/mlkem/requirements.txt").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#"))


def _mlkem(cache: Path) -> Path:
    """Return where mlkem-native's sources are."""
    return cache / f"mlkem-{hashlib.sha256(_mlkem_pin().encode()).hexdigest()[:16]}"


def _crypto(cache: Path) -> Path:
    """Return where Nettle's headers and library are."""
    return cache / f"arm64-{_CRYPTO}" / "usr"


def _stamp(cache: Path) -> Path:
    return made_of(sources_folder(), cache) / "trusted-app" / "inputs"


def _programs(cache: Path) -> Programs:
    folder = _stamp(cache).parent
    return Programs(*(folder / name for name in ("trusted-app", "plain", "as-if-inside", "checked")))


def _digest(cache: Path) -> str:
    digest = hashlib.sha256(f"{_library(cache).name} {_mlkem(cache).name}".encode())
    archive = _crypto(cache) / "lib/aarch64-linux-gnu/libnettle.a"
    digest.update(archive.read_bytes() if archive.exists() else b"")
    sources = _sources()
    files = sorted(path for path in sources.rglob("*") if path.suffix in (".cpp", ".h", ""))
    abi = [sources.parent / "abi" / name for name in ("flex.h", "flex_secure.h")]
    for path in filter(Path.is_file, [*files, *abi]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(sources.parent)}:{len(content)}\n".encode() + content)
    return digest.hexdigest()


def build_library(llama: Path, library: Path, progress: Progress) -> None:
    """Build llama.cpp, or what of it is not built yet, and say how far that is."""
    words = _make_words(llama, library, "library")
    wanted = sum(_COMPILES in line for line in tools.run(*words, "--dry-run").splitlines())
    if wanted:
        progress(
            f"building llama.cpp for the machine, once: {wanted} parts, about 6 minutes on two cores. "
            "Ctrl-C stops it, and the next start goes on with what is missing"
        )
    begun, told = 0, 0

    def heard(line: str) -> None:
        nonlocal begun, told
        begun += _COMPILES in line
        if wanted and begun * _TOLD // wanted > told:
            told = begun * _TOLD // wanted
            progress(f"building llama.cpp: part {begun} of {wanted}")

    tools.follow(*words, heard=heard, seconds=_HOURS)


def _make(llama: Path, library: Path, target: str, *settings: str) -> None:
    tools.follow(*_make_words(llama, library, target, *settings), heard=lambda _line: None, seconds=_HOURS)


def _make_words(llama: Path, library: Path, target: str, *settings: str) -> tuple[str, ...]:
    return (
        *("make", "-C", str(_sources()), f"-j{os.cpu_count()}", target, *settings),
        *(f"LLAMA={llama}", f"LIBRARY={library}", f"CROSS_COMPILE={CROSS}"),
    )


def _fetch(what: str, requirement: str, target: Path, place: str, parts: tuple[str, ...]) -> None:
    """Have the `parts` of `what`'s sources that lie below `place` in `target`, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with packages.passing_folder(target.parent, "fetching-") as folder:
        (folder / "pin").write_text(requirement)
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
        source = ("--no-deps", "--require-hashes", "--no-binary", ":all:", "--no-build-isolation")
        kept = ("--retries", "1", "--dest", folder, "--requirement", folder / "pin")
        try:
            # It unpacks what it fetches, to look at it: here, where there is room, and which is removed.
            tools.run(*pip, *source, *kept, env={**os.environ, "TMPDIR": str(folder)})
        except FlexServeError as error:
            _, _, said = error.message.partition("\n")  # without the command
            raise NormalWorldError(
                f"pip could not fetch {what}'s sources:\n{said.rstrip() or error.message}",
                hint="See to the network and run this again; what is built already is kept.",
                code="no_sources",
            ) from error
        whole = folder / "whole"
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            extract(archive, whole, place, parts)
        whole.rename(target)


def extract(
    archive: tarfile.TarFile, whole: Path, place: str = _LLAMA, parts: tuple[str, ...] = _PARTS
) -> None:
    """Write the source files of the `parts` that lie below `place`, and no other members, below `whole`."""
    wanted = tuple(f"{part}/" if part else "" for part in parts)
    for member in archive:
        _, below, name = member.name.partition(place)
        content = archive.extractfile(member) if member.isfile() and below else None
        if content is None or not name.startswith(wanted) or ".." in Path(name).parts:
            continue
        path = whole / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.read())


def main() -> None:
    """Build all, what only tests need, too, and say where the application is."""
    programs = build(default_cache(), lambda what: _say(sys.stderr, f"==> {what}"), for_tests=True)
    _say(sys.stdout, str(programs.application))


def _say(stream: TextIO, text: str) -> None:
    stream.write(f"{text}\n")
    stream.flush()


if __name__ == "__main__":
    main()
